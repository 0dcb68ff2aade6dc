"""The one place that changes tinygrad: switched at any time, from any thread, and put back as it was."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinygrad.schedule
import tinygrad.tensor
from graphs import kernel_count, normal
from tinygrad import Tensor
from tinygrad.engine.realize import run_linear
from tinygrad.helpers import Context
from tinygrad.schedule import rangeify, schedule_cache
from tinygrad.uop.ops import AxisType, Ops, UOp

import autotune
from autotune import runtime, warn
from strategies.candidate import Candidate, KernelOptions
from strategies.graph import seam
from strategies.graph.apply import lower
from strategies.graph.device import flags_in_force
from strategies.graph.fitting import MisfitError
from strategies.graph.lowered import Lowered
from strategies.graph.match import Conv
from strategies.graph.ranges import Ranges
from strategies.registry import UnknownStrategyError, get_strategy
from strategies.shape import ConvShape


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warn, "_warned", set())
    before = names()
    yield
    autotune.uninstall()
    assert names() == before


def names() -> tuple[Any, ...]:
    """Every function that the seam could have replaced."""
    return (
        rangeify.run_rangeify, tinygrad.tensor.create_linear_with_vars, tinygrad.schedule.create_linear_with_vars,
        tinygrad.schedule.get_kernel_graph, rangeify.get_kernel_graph, Tensor.schedule_linear, Tensor.conv2d,
    )  # fmt: skip


def conv(size: int = 16) -> Tensor:
    return Tensor.empty(1, 4, size, size).conv2d(Tensor.empty(4, 4, 3, 3), padding=1)


def rewriter(name: str) -> seam.Rewriter:
    def rewrite(convs: Sequence[Conv], ranges: Ranges) -> list[Any]:
        return [lower(conv, Candidate.of(name), ranges) for conv in convs]

    return rewrite


def test_uninstall_puts_everything_back() -> None:
    before = names()
    with autotune.forced("four_buffer"):
        assert names() != before
        assert kernel_count(conv()) == 4
        with autotune.forced("single_fused"):
            assert kernel_count(conv()) == 1
        assert kernel_count(conv()) == 4
    assert names() == before
    assert kernel_count(conv()) == 1
    with autotune.forced("four_buffer"):
        autotune.uninstall()
        assert names() == before
        assert kernel_count(conv()) == 1
    assert names() == before
    autotune.uninstall()
    assert names() == before


def test_the_rewriter_sees_every_convolution_of_a_graph_at_once() -> None:
    seen: list[list[ConvShape | None]] = []

    def look(convs: Sequence[Conv], ranges: Ranges) -> list[None]:
        seen.append([conv.shape for conv in convs])
        return [None] * len(convs)

    with seam.attached(look):
        (conv() + conv()).relu().schedule_linear()
        conv().relu().schedule_linear()
        (Tensor.empty(4, 4) @ Tensor.empty(4, 4)).schedule_linear()
    shape = ConvShape.of((1, 4, 16, 16), (4, 4, 3, 3), padding=1)
    assert seen == [[shape, shape], [shape]]


def test_where_nothing_is_wanted_the_rewriter_is_not_asked() -> None:
    """Nor where that is to be seen only once tinygrad's STAGEs are gone, which hide what products read."""
    asked: list[list[bool]] = []
    calls: list[int] = []

    def wanted(convs: Sequence[Conv]) -> list[bool]:
        asked.append([False] * len(convs))
        return asked[-1]

    def called(convs: Sequence[Conv], _: Ranges) -> list[None]:
        calls.append(len(convs))
        return [None] * len(convs)

    seam.attach(seam.Attachment(rewriter=called, wanted=wanted))
    twice = Tensor.empty(8, 16).relu() * 2 + 1
    conv().schedule_linear(twice @ twice.T, twice.T @ twice)
    assert (asked, calls) == ([[False]], [])


def test_a_rewriter_that_raises() -> None:
    def broken(convs: Sequence[Conv], ranges: Ranges) -> list[None]:
        raise UnknownStrategyError("no such thing")

    heard: list[Exception] = []
    x, w = normal(1, 4, 16, 16), normal(4, 4, 3, 3, seed=1)
    expected = x.conv2d(w, padding=1).numpy()
    seam.attach(seam.Attachment(rewriter=broken, failed=lambda _, error: heard.append(error)))
    assert np.array_equal(x.conv2d(w, padding=1).numpy(), expected)
    assert [type(error) for error in heard] == [UnknownStrategyError]
    seam.detach()
    with seam.attached(broken), pytest.raises(UnknownStrategyError):
        conv().schedule_linear()
    assert kernel_count(conv()) == 1


def test_a_rewrite_that_tinygrad_refuses() -> None:
    """A lowering that makes an impossible graph: scheduled again, without it."""

    def impossible(convs: Sequence[Conv], ranges: Ranges) -> list[Any]:
        return [Lowered(value=c.reduce.replace(src=c.reduce.src[:1])) for c in convs]  # its ranges are left open

    heard: list[Exception] = []
    seam.attach(seam.Attachment(rewriter=impossible, failed=lambda _, error: heard.append(error)))
    assert kernel_count(conv()) == 1
    assert len(heard) == 1
    assert kernel_count(conv()) == 1  # from the cache: tinygrad's own


def test_news_amid_a_schedule_leave_it_ours() -> None:
    """Another thread, ahead of a schedule of its own, tells the attachment of a change while this is rewritten. What
    is wrong with it is still no error of the program, and kernels still get their options."""
    candidate = Candidate(strategy="four_buffer", kernel_options=(("product", KernelOptions(axes="", options=())),))

    def impossible(convs: Sequence[Conv], ranges: Ranges) -> list[Any]:
        attachment.changed()
        return [Lowered(value=c.reduce.replace(src=c.reduce.src[:1])) for c in convs]

    def with_options(convs: Sequence[Conv], ranges: Ranges) -> list[Any]:
        attachment.changed()
        return [lower(conv, candidate, ranges) for conv in convs]

    heard: list[Exception] = []
    fitted: list[MisfitError | None] = []
    attachment = seam.Attachment(
        rewriter=impossible, failed=lambda _, error: heard.append(error), fitted=lambda misfit, _: fitted.append(misfit)
    )
    seam.attach(attachment)
    assert kernel_count(conv()) == 1
    assert len(heard) == 1
    attachment.rewriter = with_options
    assert kernel_count(conv(18)) == 5
    assert [str(misfit).startswith("product: they are for") for misfit in fitted] == [True]


def test_a_users_own_mistake_is_not_ours() -> None:
    heard: list[Exception] = []
    seam.attach(seam.Attachment(rewriter=rewriter("four_buffer"), failed=lambda _, error: heard.append(error)))
    with pytest.raises(RuntimeError, match="same device"):
        (Tensor.empty(4, device="CPU") + Tensor.empty(4, device="CPU:1")).schedule_linear()
    assert not heard


@pytest.mark.parametrize("found", ["0.13.0", "0.15.0", "1.14.0", "0.14"])
def test_another_tinygrad(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names()
    monkeypatch.setattr(seam, "version", lambda name: found)
    if found == "0.14":
        assert seam.seam_fault() is None
        return
    with pytest.warns(RuntimeWarning, match=rf"inactive: tinygrad {found} is not supported: install tinygrad 0.14.x"):
        autotune.install("/nowhere.json")
    assert names() == before
    assert kernel_count(conv()) == 1
    with autotune.forced("four_buffer"):  # said once
        assert names() == before
        assert kernel_count(conv()) == 1
    assert importlib.metadata.version("tinygrad").startswith("0.14.")


def test_a_seam_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "_NAMES", ((rangeify, "run_backwards"),))
    with pytest.warns(RuntimeWarning, match="has no tinygrad.schedule.rangeify.run_backwards"):
        autotune.install("/nowhere.json")
    assert kernel_count(conv()) == 1


class Held:
    """run_rangeify, that stops in the threads it is told to until it is let go."""

    def __init__(self) -> None:
        self.original, self.thread = rangeify.run_rangeify, 0
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, sink: Any, debug: bool = False) -> Any:
        result = self.original(sink, debug)
        if threading.get_ident() == self.thread:
            self.reached.set()
            assert self.release.wait(30)
        return result


@pytest.fixture
def held() -> Iterator[Held]:
    schedule_cache.clear()  # what earlier tests scheduled is forgotten
    held = Held()
    rangeify.run_rangeify = held
    yield held
    held.release.set()
    autotune.uninstall()
    seam.detach()
    rangeify.run_rangeify = held.original


@pytest.mark.parametrize("installed_before", [False, True])
def test_a_schedule_that_was_under_way_leaves_nothing_stale(held: Held, installed_before: bool) -> None:
    """A thread amid a schedule when the lowering is switched: nobody waits for it, it stays under the lowering that it
    began with, and what it then puts into the cache is found by nobody who is under another."""

    def schedule() -> int:
        held.thread = threading.get_ident()
        return kernel_count(conv(24))

    with ThreadPoolExecutor(1) as pool:
        if installed_before:
            seam.attach(seam.Attachment(rewriter=rewriter("single_fused")))
        scheduled = pool.submit(schedule)
        assert held.reached.wait(30)
        seam.attach(seam.Attachment(rewriter=rewriter("four_buffer")))
        assert kernel_count(conv(24)) == 4
        held.release.set()
        assert scheduled.result(30) == 1
    held.thread = 0
    assert kernel_count(conv(24)) == 4
    seam.detach()
    assert kernel_count(conv(24)) == 1


def test_a_schedule_belongs_to_the_flags_that_it_was_made_under() -> None:
    """tinygrad's cache of schedules does not know of flags, the keys of winners do."""
    asked: list[str] = []

    def by_flags(convs: Sequence[Conv], ranges: Ranges) -> list[UOp | None]:
        asked.append(str(flags_in_force()))
        return [None] * len(convs)

    with seam.attached(by_flags):
        kernel_count(conv(28))
        kernel_count(conv(28))
        with Context(NOOPT=1):
            kernel_count(conv(28))
            kernel_count(conv(28))
        kernel_count(conv(28))
    assert asked == ["()", "(('NOOPT', '1'),)"]


def test_a_graph_that_failed_under_some_flags_is_tried_under_others() -> None:
    """And nothing is known of it that was true under other flags."""
    four = rewriter("four_buffer")

    def refuses_noopt(convs: Sequence[Conv], ranges: Ranges) -> Sequence[Lowered | None]:
        if flags_in_force():
            raise UnknownStrategyError("not under these flags")
        return four(convs, ranges)

    scheduled: list[bytes] = []
    seam.attach(seam.Attachment(rewriter=refuses_noopt, failed=lambda *_: None, scheduled=scheduled.append))
    with Context(NOOPT=1):
        assert kernel_count(conv(20)) == 1
    assert kernel_count(conv(20)) == 4
    with Context(NOOPT=1):
        assert kernel_count(conv(20)) == 1
    assert len(set(scheduled)) == 2


def test_blocks_of_two_threads_overlap() -> None:
    """Each thread has its own, whichever ends first, and nothing is left behind."""
    before, begun, ended = names(), threading.Event(), threading.Event()
    counts: list[int] = []

    def second() -> None:
        with seam.attached(rewriter("inline_transforms")):
            counts.append(kernel_count(conv()))
            begun.set()
            assert ended.wait(30)
            counts.append(kernel_count(conv()))

    with ThreadPoolExecutor(1) as pool:
        with seam.attached(rewriter("four_buffer")):
            running = pool.submit(second)
            assert begun.wait(30)
            assert kernel_count(conv()) == 4
        assert kernel_count(conv()) == 1
        ended.set()
        running.result(30)
    assert counts == [2, 2]
    assert names() == before
    assert kernel_count(conv()) == 1


def test_a_block_leaves_what_is_attached_for_all() -> None:
    with seam.attached(rewriter("single_fused")):
        seam.attach(seam.Attachment(rewriter=rewriter("four_buffer")))
        assert kernel_count(conv()) == 1
    assert kernel_count(conv()) == 4


def test_a_lowering_that_is_not_taken_leaves_nothing_behind() -> None:
    """`shared_memory` splits the loops of the kernel around it: that is of its answer, and goes with it."""
    fused = get_strategy("shared_memory").candidate({"cout_block": 16, "tile_block": 32, "couts": 4, "tiles": 4})

    def only_the_second(convs: Sequence[Conv], ranges: Ranges) -> list[Lowered | None]:
        assert lower(convs[0], fused, ranges) is not None
        return [None, *(lower(conv, Candidate.of("four_buffer"), ranges) for conv in convs[1:])]

    x, w = (Tensor.empty(*size, device="PYTHON") for size in ((1, 16, 16, 16), (16, 16, 3, 3)))
    with seam.attached(only_the_second):
        linear = x.conv2d(w, padding=1).relu().contiguous().conv2d(w, padding=1).schedule_linear()
    kinds = {u.arg[-1] for call in linear.src for u in call.src[0].toposort() if u.op is Ops.RANGE}
    assert AxisType.WARP not in kinds


DOES_NOT_COMPILE = """
import sys, threading
import numpy as np
from autotune.compiler import ensure_c_compiler
from graphs import normal
from strategies.graph import Lowered, seam
from tinygrad.codegen.opt import Opt, OptOps
from tinygrad.uop.ops import Ops, UOp

ensure_c_compiler()
no_such_axis = (Opt(OptOps.UPCAST, 97, 4),)
with_it = lambda conv: Lowered(value=UOp(Ops.CONTIGUOUS, src=(conv.reduce,), arg=no_such_axis))
broken = lambda convs, ranges: list(map(with_it, convs))
compute = lambda: normal(1, 4, 9, 9).conv2d(normal(4, 4, 3, 3, seed=1)).numpy()
heard, expected = [], compute()
seam.attach(seam.Attachment(rewriter=broken, failed=lambda _, error: heard.append(error)))
done = threading.Event()
for _ in range(1, int(sys.argv[1])):
    threading.Thread(target=done.wait).start()
assert all(np.array_equal(compute(), expected) for _ in range(2))
print([type(error).__name__ for error in heard])
done.set()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_graph_whose_kernels_do_not_compile_is_scheduled_alone(threads: int) -> None:
    """Also when it comes again: from the cache, it would be the rewritten one. Whatever other threads there are."""
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent)))
    done = subprocess.run([sys.executable, "-c", DOES_NOT_COMPILE, str(threads)], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['KernelOptError']"


CAPTURED = """
from tinygrad import TinyJit
state = []

@TinyJit
def step(x):
    y = x.conv2d(w)
    if not state:  # as an optimiser that makes its state at its first step
        state.append(y.detach().realize())
        return y.relu().realize()
    return (y + state[0]).relu().realize()

w = normal(4, 4, 3, 3, seed=1)
for seed in range(4):
    x = normal(1, 4, 9, 9, seed=seed)
    with Context(JIT=0):
        y = x.conv2d(w).numpy()
    before, found = len(heard), step(x).numpy()
    assert seed != 1 or len(heard) - before == 1  # the jit captures at its second call
    first = y if seed == 0 else first
    assert np.allclose(found, np.maximum(y + first if seed else y, 0), atol=1e-5), seed
"""


def test_a_graph_that_a_jit_captures_and_that_does_not_compile_is_scheduled_alone() -> None:
    """One that the jit had not seen before: nobody has run it, and found out."""
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent)))
    script = DOES_NOT_COMPILE.replace("import sys", "from tinygrad.helpers import Context\nimport sys") + CAPTURED
    done = subprocess.run([sys.executable, "-c", script, "1"], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_two_threads_schedule_while_a_third_switches() -> None:
    """Right numbers, no stale schedule, no deadlock: every schedule of the switching thread is of its own lowering."""
    # an input for each thread: of one graph that two have, the tensors of both are scheduled by either, run by one
    x, *others = (normal(1, 4, 12, 12) for _ in range(3))
    w = normal(4, 4, 3, 3, seed=1)
    expected = x.conv2d(w, padding=1).relu().numpy()
    stop, compiling = threading.Event(), threading.Lock()

    def compute(x: Tensor) -> int:
        rounds = 0
        while not stop.is_set():
            y = x.conv2d(w, padding=1).relu()
            linear = y.schedule_linear()
            with compiling:  # tinygrad cannot compile in two threads at once, with or without us
                run_linear(linear)
                found = y.numpy()
            assert abs(found - expected).max() < 1e-4 * abs(expected).max()
            rounds += 1
        return rounds

    plain = Context(CACHELEVEL=0, NOOPT=1)  # its cache of compiled kernels belongs to one thread
    counts = {"four_buffer": 4, "single_fused": 1, "inline_transforms": 2, "direct": 1}
    with plain, ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(compute, each) for each in others]
        try:
            for turn in range(len(counts)):
                name = list(counts)[turn % len(counts)]
                with autotune.forced(name):
                    assert kernel_count(x.conv2d(w, padding=1).relu()) == counts[name]
                assert kernel_count(x.conv2d(w, padding=1).relu()) == 1
        finally:
            stop.set()
        assert all(thread.result(60) > 0 for thread in threads)


def test_a_change_announced_ahead_of_a_schedule_acts_on_it() -> None:
    attachment = seam.Attachment(rewriter=rewriter("four_buffer"))
    seam.attach(attachment)
    assert kernel_count(conv()) == 4
    attachment.rewriter = rewriter("single_fused")
    assert kernel_count(conv()) == 4  # cached: nobody said that anything changed
    attachment.before = attachment.changed
    assert kernel_count(conv()) == 1


def test_nothing_is_left_behind_by_a_failed_block() -> None:
    before = names()
    with pytest.raises(KeyError), autotune.forced("four_buffer"):
        raise KeyError
    assert names() == before
    assert runtime._stack == []
