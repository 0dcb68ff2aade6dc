"""Frozen weights: filters are transformed once, kept, and transformed again when told to."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import TOLERANCE, Array, counted, normal, relative
from tinygrad import Tensor, TinyJit
from tinygrad.helpers import Context, GlobalCounters
from tinygrad.uop.ops import UOp
from values import a_winner

import autotune
from autotune import bundle, warn
from strategies.candidate import Candidate
from strategies.graph import frozen
from strategies.graph.device import describe_device
from strategies.graph.program import Program
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape

SHAPE = ConvShape.of((1, 4, 12, 12), (4, 4, 3, 3), padding=1)


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warn, "_warned", set())
    gc.collect()  # what earlier tests left
    with Context(NOOPT=1):
        yield
    autotune.uninstall()


class Net:
    """Two convolutions with weights of their own."""

    def __init__(self) -> None:
        self.first, self.second = normal(4, 4, 3, 3, seed=1), normal(4, 4, 3, 3, seed=2)

    def __call__(self, x: Tensor) -> Tensor:
        return x.conv2d(self.first, padding=1).relu().conv2d(self.second, padding=1).realize()


def ran(run: Callable[[], Tensor]) -> tuple[int, Array]:
    """How many kernels a call ran, and what came out."""
    before = GlobalCounters.kernel_count
    y = run()
    return GlobalCounters.kernel_count - before, y.numpy()


@pytest.mark.parametrize("jit", [False, True])
def test_filters_are_transformed_once(jit: bool) -> None:
    net, x = Net(), normal(*SHAPE.input_shape)
    expected = net(x).numpy()
    with autotune.forced("four_buffer"):
        assert ran(lambda: net(x))[0] == 8
    with autotune.forced("four_buffer", frozen_weights=True):
        step = TinyJit(net) if jit else net
        for _ in range(4):
            count, found = ran(lambda: step(x))
            assert count == 6
            assert relative(found, expected) < TOLERANCE
        other = normal(*SHAPE.input_shape, seed=9)
        found = step(other).numpy()
    assert relative(found, net(other).numpy()) < TOLERANCE


@pytest.mark.parametrize("jit", [False, True])
def test_weights_written_over_are_stale_until_refresh(jit: bool) -> None:
    net, x = Net(), normal(*SHAPE.input_shape)
    with autotune.forced("four_buffer", frozen_weights=True):
        step = TinyJit(net) if jit else net
        for _ in range(3):
            before = step(x).numpy()
        net.first.assign(net.first * 2).realize()
        assert np.array_equal(step(x).numpy(), before)
        assert autotune.refresh() == 2
        count, after = ran(lambda: step(x))
    assert count == 6
    assert relative(after, net(x).numpy()) < TOLERANCE
    assert relative(after, 2 * before) < TOLERANCE


def test_weights_that_are_replaced_need_no_refresh() -> None:
    net, x = Net(), normal(*SHAPE.input_shape)
    with autotune.forced("four_buffer", frozen_weights=True):
        net(x)
        net.second.replace(normal(4, 4, 3, 3, seed=5))
        found = net(x).numpy()
    assert relative(found, net(x).numpy()) < TOLERANCE


def held_bytes() -> int:
    """What tinygrad has allocated once all garbage is gone."""
    gc.collect()
    return int(GlobalCounters.mem_used)


@pytest.mark.parametrize("jit", [False, True])
def test_memory_goes_with_the_model(jit: bool) -> None:
    x = normal(*SHAPE.input_shape)
    before = held_bytes()
    with autotune.forced("four_buffer", frozen_weights=True):
        net: Net | None = Net()
        assert net is not None
        step = TinyJit(net.__call__) if jit else net
        for _ in range(3):
            step(x)
        weights = net.first.nbytes() + net.second.nbytes()
        assert held_bytes() >= before + weights + 2 * 36 * 16 * 4  # GHAT of tile 4: 36 points, 16 pairs of channels
        del net, step
        assert held_bytes() == before
        assert autotune.refresh() == 0


def test_memory_goes_with_the_hook() -> None:
    net, x = Net(), normal(*SHAPE.input_shape)
    before = held_bytes()
    with autotune.forced("four_buffer", frozen_weights=True):
        net(x)
        assert held_bytes() > before
    assert held_bytes() == before
    assert autotune.refresh() == 0


def test_a_captured_jit_outlives_the_hook_and_is_refreshed() -> None:
    net, x = Net(), normal(*SHAPE.input_shape)
    step = TinyJit(net.__call__)
    with autotune.forced("four_buffer", frozen_weights=True):
        for _ in range(3):
            step(x)
    net.first.assign(net.first * 3).realize()
    assert autotune.refresh() == 2
    count, found = ran(lambda: step(x))
    assert count == 6
    assert relative(found, net(x).numpy()) < TOLERANCE


# Where the weight is no plain realized buffer that stays, the promise changes nothing.


def test_a_weight_given_to_a_jitted_function_is_transformed_every_time() -> None:
    x, step = normal(*SHAPE.input_shape), TinyJit(lambda x, w: x.conv2d(w, padding=1).realize())
    with autotune.forced("four_buffer", frozen_weights=True):
        for seed in range(5):
            w = normal(4, 4, 3, 3, seed=seed)
            count, found = ran(lambda w=w: step(x, w))  # type: ignore[misc]
            assert count == 4 if seed >= 2 else 3
            with autotune.forced("direct"):
                assert relative(found, x.conv2d(w, padding=1).numpy()) < TOLERANCE


def test_a_weight_that_a_jit_makes_is_transformed_every_time() -> None:
    def step(x: Tensor, scale: Tensor) -> Tensor:
        w = (base * scale).contiguous().realize()
        return x.conv2d(w, padding=1).realize()

    x, base, run = normal(*SHAPE.input_shape), normal(4, 4, 3, 3, seed=1), TinyJit(step)
    expected = x.conv2d(base, padding=1).numpy()
    with autotune.forced("four_buffer", frozen_weights=True):
        for factor in range(1, 6):
            found = run(x, Tensor([float(factor)]).realize()).numpy()
            assert relative(found, factor * expected) < TOLERANCE


def test_a_weight_that_its_own_graph_writes() -> None:
    """Assigned and read in one schedule: not what was kept, nor kept from now on."""
    x, w = normal(*SHAPE.input_shape), normal(4, 4, 3, 3, seed=1)
    expected = x.conv2d(w * 2, padding=1).numpy()
    with autotune.forced("four_buffer", frozen_weights=True):
        x.conv2d(w, padding=1).realize()
        doubled = w.assign(w * 2)
        found = x.conv2d(doubled, padding=1).realize(doubled).numpy()
    assert relative(found, expected) < TOLERANCE


@pytest.mark.parametrize("jit", [False, True])
def test_a_weight_that_a_step_changes(jit: bool) -> None:
    """The promise is broken, in the graph that reads the weight: seen, and nothing goes stale within a jit."""
    x, w = normal(*SHAPE.input_shape), normal(4, 4, 3, 3, seed=1)
    values, direct = w.numpy(), x.conv2d(w, padding=1).numpy()

    def step(x: Tensor) -> Tensor:
        y = x.conv2d(w, padding=1).contiguous()
        return y.realize(w.assign(w * 2))

    run = TinyJit(step) if jit else step
    with autotune.forced("four_buffer", frozen_weights=True):
        for turn in range(4):
            found = run(x).numpy()
            assert relative(found, direct * 2**turn) < TOLERANCE
    assert np.array_equal(w.numpy(), values * 16)


def test_a_weight_that_is_an_input_too() -> None:
    x = normal(3, 3, 3, 3)
    run = TinyJit(lambda: x.conv2d(x, padding=1).realize())
    expected = x.conv2d(x, padding=1).numpy()
    with autotune.forced("four_buffer", frozen_weights=True):
        for _ in range(3):
            count, found = ran(run)
    assert count == 5
    assert relative(found, expected) < TOLERANCE


@pytest.mark.parametrize("view", [lambda w: w[4:], lambda w: w[:4], lambda w: w[::2], lambda w: w[:4] * 2])
def test_a_weight_that_is_a_view(view: Callable[[Tensor], Tensor]) -> None:
    x, w = normal(*SHAPE.input_shape), normal(8, 4, 3, 3, seed=1)
    expected = x.conv2d(view(w), padding=1).numpy()
    with autotune.forced("four_buffer", frozen_weights=True):
        for _ in range(2):
            assert relative(x.conv2d(view(w), padding=1).numpy(), expected) < TOLERANCE


def test_a_sharded_weight() -> None:
    devices = ("CPU:0", "CPU:1")
    x, w = normal(4, 4, 8, 9), normal(4, 4, 3, 3, seed=1)
    expected = x.conv2d(w, padding=1).numpy()
    xs, ws = x.shard(devices, axis=0).realize(), w.shard(devices).realize()
    with autotune.forced("four_buffer", frozen_weights=True):
        for _ in range(2):
            assert relative(xs.conv2d(ws, padding=1).numpy(), expected) < TOLERANCE


def test_what_else_is_made_of_a_weight_and_stacked() -> None:
    """A kernel of the weight alone whose result is read as one of several devices' parts."""
    x, w = normal(1, 4, 8, 9), normal(4, 4, 3, 3, seed=1)
    devices = (f"{w.device}", f"{w.device}:1")
    expected = x.conv2d(w, padding=1).numpy(), (w * 2).numpy()
    with autotune.forced("four_buffer", frozen_weights=True):
        for _ in range(2):
            y, both = x.conv2d(w, padding=1), (w * 2).shard(devices) + 0
            Tensor.realize(y, both)
            assert relative(y.numpy(), expected[0]) < TOLERANCE
            assert np.array_equal(both.numpy(), expected[1])


def test_a_transform_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for it, say: the filter is transformed at every run, as without the promise."""

    def refuse(kernel: UOp, out: UOp, weight: UOp) -> None:
        raise MemoryError("no room")

    net, x = Net(), normal(*SHAPE.input_shape)
    expected = net(x).numpy()
    monkeypatch.setattr(frozen, "_run", refuse)
    with autotune.forced("four_buffer", frozen_weights=True):
        with pytest.warns(RuntimeWarning, match="could not be kept: MemoryError: no room"):
            count, found = ran(lambda: net(x))
        assert ran(lambda: net(x))[0] == count == 8
    assert relative(found, expected) < TOLERANCE


def test_beside_other_threads_nothing_new_is_computed() -> None:
    """tinygrad compiles in one thread at a time, and only the program knows in which."""
    net, x, stop = Net(), normal(*SHAPE.input_shape), threading.Event()
    other = threading.Thread(target=stop.wait)
    with autotune.forced("four_buffer", frozen_weights=True):
        other.start()
        try:
            assert ran(lambda: net(x))[0] == 8
        finally:
            stop.set()
            other.join()
        assert ran(lambda: net(x))[0] == 6
        stop.clear()
        other = threading.Thread(target=stop.wait)
        other.start()
        try:
            assert ran(lambda: net(x))[0] == 6
        finally:
            stop.set()
            other.join()


# Winners and their measurements


def source(directory: Path, *, frozen_weights: bool, strategy: str, allow_tf32: bool = False) -> ConvKey:
    policy = Policy(frozen_weights=frozen_weights, allow_tf32=allow_tf32)
    key = ConvKey(shape=SHAPE, device=describe_device("CPU"), policy=policy)
    path = directory / "winners.json"
    known = list(bundle.read(path)) if path.exists() else []
    bundle.write(path, [*known, replace(a_winner(key), candidate=Candidate.of(strategy))])
    return key


def test_a_winner_tuned_without_the_promise_holds_with_it(tmp_path: Path) -> None:
    x, w = normal(*SHAPE.input_shape), normal(*SHAPE.weight_shape, seed=1)
    source(tmp_path, frozen_weights=False, strategy="four_buffer")
    autotune.install(tmp_path / "winners.json", frozen_weights=True)
    did = counted(lambda: x.conv2d(w, padding=1).realize())
    assert (did.convolutions, did.hits, did.applied, did.misses) == (1, 1, 1, 0)
    assert ran(lambda: x.conv2d(w, padding=1).realize())[0] == 3
    source(tmp_path, frozen_weights=True, strategy="deferred_mhat")
    with autotune.tuned(tmp_path / "winners.json", policy=Policy(frozen_weights=True)):
        assert ran(lambda: x.conv2d(w, padding=1).realize())[0] == 2
    with autotune.tuned(tmp_path / "winners.json"):
        assert ran(lambda: x.conv2d(w, padding=1).realize())[0] == 4


def test_a_winner_tuned_without_tf32_holds_where_it_is_allowed(tmp_path: Path) -> None:
    """And with both allowed and promised, one that was tuned with neither; never the other way round."""
    x, w = normal(*SHAPE.input_shape), normal(*SHAPE.weight_shape, seed=1)
    source(tmp_path, frozen_weights=False, strategy="four_buffer")
    for policy in (Policy(allow_tf32=True), Policy(allow_tf32=True, frozen_weights=True)):
        with autotune.tuned(tmp_path / "winners.json", policy=policy):
            assert counted(lambda: x.conv2d(w, padding=1).realize()).applied == 1
    (tmp_path / "winners.json").unlink()
    source(tmp_path, frozen_weights=False, strategy="four_buffer", allow_tf32=True)
    with autotune.tuned(tmp_path / "winners.json"):
        assert counted(lambda: x.conv2d(w, padding=1).realize()).misses == 1


def test_a_candidate_is_measured_as_it_will_run() -> None:
    """Without the filter transform; which is made of the weight that was loaded last."""
    candidate = Candidate.of("four_buffer")
    rng = np.random.default_rng(0)
    program = Program(SHAPE, candidate, "CPU", frozen_weights=True)
    assert len(program.kernels) == len(Program(SHAPE, candidate, "CPU").kernels) - 1 == 3
    assert program.workspace_bytes >= 36 * 16 * 4
    plain = Program(SHAPE, Candidate.of("direct"), "CPU", frozen_weights=True)
    for _ in range(2):
        x, w = rng.normal(size=SHAPE.input_shape), rng.normal(size=SHAPE.weight_shape)
        for each in (program, plain):
            each.load(x, w)
            each.poison()
            each.run()
        assert relative(program.output(), plain.output()) < TOLERANCE
