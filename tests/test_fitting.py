"""Options in a user's program: on the kernels they are meant for, and tinygrad's own choice wherever they do not fit.

Whatever they are and wherever they come from, a program computes what it would without, the first time and again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import TOLERANCE, Array, counted, examples, kernels, normal, relative
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor, TinyJit
from tinygrad.codegen.opt import OptOps
from tinygrad.helpers import NUM_CPU_THREADS, Context, Target
from tinygrad.renderer.cstyle import OpenCLRenderer
from values import a_winner

import autotune
from autotune import bundle, decisions, warn
from autotune.models import resnet18
from strategies.candidate import Candidate, KernelOptions
from strategies.graph.device import describe_device, flags_in_force, opened
from strategies.graph.find import find_convolutions
from strategies.graph.fitting import MisfitError, fit, heuristics_without_tensor_cores
from strategies.graph.kernels import tunable_kernels
from strategies.key import ConvKey
from strategies.registry import get_strategy
from strategies.shape import ConvShape

SHAPE = ConvShape.of((1, 4, 12, 12), (4, 4, 3, 3), padding=1)
X, W = normal(*SHAPE.input_shape), normal(*SHAPE.weight_shape, seed=1)
OWN = normal(*SHAPE.weight_shape, seed=4)
BIAS, OTHER = normal(4, seed=2), normal(1, 4, 12, 12, seed=3)
AXES = "L4 L12 L12 R4 R3 R3"
UPCAST = (("UPCAST", 0, 2), ("UPCAST", 2, 2))
DIRECT = Candidate(strategy="direct", kernel_options=(("convolution", KernelOptions(axes=AXES, options=UPCAST)),))


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warn, "_warned", set())
    monkeypatch.setattr(decisions, "POLL_S", 0.0)
    with Context(NOOPT=1):  # so that options show, and compiling is quick
        yield
    autotune.uninstall()


def exported(directory: Path, candidate: Candidate, shape: ConvShape = SHAPE) -> str:
    """A bundle with one winner, as anybody may send it."""
    path = directory / "winners.json"
    key = ConvKey(shape=shape, device=describe_device("CPU"))
    bundle.write(path, [replace(a_winner(key, decided_at=1.0, state="verified"), candidate=candidate)])
    return str(path)


def conv() -> Tensor:
    return X.conv2d(W, padding=1)


def options_of(build: Callable[[], Tensor]) -> list[tuple[str, ...]]:
    return [kernel.options for kernel in kernels(build())]


FITS: dict[str, Callable[[], Tensor]] = {
    "alone": conv,
    "bias and relu": lambda: X.conv2d(W, BIAS, padding=1).relu(),
    "residual": lambda: (conv() + OTHER) * 2,
    "activation before": lambda: X.relu().conv2d(W, padding=1),
    "channels last": lambda: X.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).conv2d(W, padding=1),
}


@pytest.mark.parametrize("name", FITS)
def test_options_reach_the_kernel_whatever_is_fused_into_it(name: str, tmp_path: Path) -> None:
    expected = FITS[name]().numpy()
    with autotune.tuned(exported(tmp_path, DIRECT)):
        found: list[tuple[str, ...]] = []
        did = counted(lambda: found.extend(options_of(FITS[name])))
        output = FITS[name]().numpy()
    assert ("UPCAST:0:2", "UPCAST:2:2") in found
    assert (did.hits, did.applied, did.kernels_with_options, did.option_fallbacks) == (1, 1, 1, 0)
    assert relative(output, expected) < TOLERANCE


def shuffled() -> Tensor:
    """Its kernel runs over the output channels in two loops."""
    return conv().reshape(1, 2, 2, 12, 12).transpose(1, 2).contiguous()


def test_what_does_not_fit_falls_back_for_that_kernel_alone(tmp_path: Path) -> None:
    build = shuffled
    expected = build().numpy()
    with autotune.tuned(exported(tmp_path, DIRECT)):
        outputs: list[Array] = []
        with pytest.warns(RuntimeWarning, match="options found for a kernel do not fit it here"):
            did = counted(lambda: outputs.append(build().numpy()))
        outputs.append(build().numpy())
    assert (did.fallbacks, did.kernels_with_options, did.option_fallbacks) == (0, 0, 1)
    assert all(np.array_equal(output, expected) for output in outputs)


def test_convolutions_that_would_share_a_kernel_get_one_each(tmp_path: Path) -> None:
    def build() -> Tensor:
        return (conv() + X.conv2d(OWN, padding=1)).relu()

    expected = build().numpy()
    with autotune.tuned(exported(tmp_path, DIRECT)):
        options: list[tuple[str, ...]] = []
        did = counted(lambda: options.extend(options_of(build)))
        output = build().numpy()
    assert (did.applied, did.kernels_with_options, did.option_fallbacks) == (2, 2, 0)
    assert options.count(("UPCAST:0:2", "UPCAST:2:2")) == 2
    assert relative(output, expected) < TOLERANCE


def winograd(*roles: str) -> Candidate:
    """`four_buffer` with an option for the kernel of each of these roles."""
    plain = get_strategy("four_buffer").candidate({"tile": 2})
    chosen = ((k.role, k.chosen(k.more(())[-1])) for k in tunable_kernels(SHAPE, plain, "CPU") if k.role in roles)
    return replace(plain, kernel_options=tuple(sorted(chosen)))


SHARED: dict[str, Callable[[], Tensor]] = {
    "another convolution": lambda: conv() + X.conv2d(OWN, padding=1).relu(),
    "a sum over its outputs": lambda: (conv() + OTHER).relu().mean((2, 3)),
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("candidate", [DIRECT, winograd("output")], ids=lambda candidate: candidate.strategy)
def test_what_else_its_kernel_computes_takes_no_options_from_a_convolution(
    candidate: Candidate, name: str, tmp_path: Path
) -> None:
    """Every one that was to have options has them, in a kernel that is as it was measured."""
    expected = SHARED[name]().numpy()
    with autotune.tuned(exported(tmp_path, candidate)):
        outputs: list[Array] = []
        did = counted(lambda: outputs.append(SHARED[name]().numpy()))
    assert did.kernels_with_options == did.applied == did.convolutions > 0
    assert did.option_fallbacks == 0
    assert relative(outputs[0], expected) < TOLERANCE


ABSURD: dict[str, KernelOptions] = {
    "another kernel's": KernelOptions(axes="L8 L12 L12 R4 R3 R3", options=UPCAST),
    "no axes": KernelOptions(axes="", options=UPCAST),
    "no such op": KernelOptions(axes=AXES, options=(("MELT", 0, 4),)),
    "no axis": KernelOptions(axes=AXES, options=(("UPCAST", None, 4),)),
    "an axis there is not": KernelOptions(axes=AXES, options=(("UPCAST", 9, 4),)),
    "an axis from behind": KernelOptions(axes=AXES, options=(("UPCAST", -1, 3),)),
    "an amount that does not divide": KernelOptions(axes=AXES, options=(("UPCAST", 1, 5),)),
    "a negative amount": KernelOptions(axes=AXES, options=(("UPCAST", 1, -4),)),
    "no amount": KernelOptions(axes=AXES, options=(("UPCAST", 1, None),)),
    "many amounts": KernelOptions(axes=AXES, options=(("UPCAST", 1, (2, 2)),)),
    "a huge number": KernelOptions(axes=AXES, options=(("LOCAL", 0, 10**30),)),
    "threads beyond the processor's": KernelOptions(axes=AXES, options=(("THREAD", 1, NUM_CPU_THREADS.value * 12),)),
    "local memory on a CPU": KernelOptions(axes=AXES, options=(("LOCAL", 0, 4),)),
    "a tensor core that there is not": KernelOptions(axes=AXES, options=(("TC", 0, (-1, 2, 1)),)),
    "a tensor core of two numbers": KernelOptions(axes=AXES, options=(("TC", 0, (1, 1)),)),
    "a padding to nothing": KernelOptions(axes=AXES, options=(("PADTO", 1, 0),)),
    "an option a hundred times": KernelOptions(axes=AXES, options=(("NOLOCALS", None, None),) * 100),
    "everything in registers": KernelOptions(
        axes=AXES, options=(("UPCAST", 2, 0), ("UPCAST", 1, 0), ("UPCAST", 0, 0), ("UNROLL", 0, 0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_options_from_outside_are_counted_and_never_raise(name: str, tmp_path: Path) -> None:
    expected = conv().numpy()
    candidate = Candidate(strategy="direct", kernel_options=(("convolution", ABSURD[name]),))
    with autotune.tuned(exported(tmp_path, candidate)):
        outputs: list[Array] = []
        with pytest.warns(RuntimeWarning, match="options found for a kernel do not fit it here"):
            did = counted(lambda: outputs.append(conv().numpy()))
        outputs.append(conv().numpy())  # a graph that failed once must not do nothing the second time
    assert (did.applied, did.fallbacks, did.kernels_with_options, did.option_fallbacks) == (1, 0, 0, 1)
    assert all(np.array_equal(output, expected) for output in outputs)


numbers = st.none() | st.integers() | st.integers(-2, 16)


ops = st.sampled_from(("UPCAST", "UNROLL", "THREAD", "LOCAL", "GROUP", "SWAP", "TC", "PADTO", "NOLOCALS", "MELT"))
arguments = numbers | st.lists(numbers, max_size=3).map(tuple)


@given(st.lists(st.tuples(ops, numbers, arguments), max_size=5).map(tuple))
@examples(60)
def test_any_options_fit_or_do_not(options: tuple[Any, ...]) -> None:
    with suppress(MisfitError):
        assert len(fit(KERNEL.kernel, KERNEL.axes, options, KERNEL.renderer)) == len(options)


[KERNEL] = tunable_kernels(SHAPE, Candidate.of("direct"), "CPU")


def test_a_bundle_with_options_that_are_none_is_refused_as_a_whole(tmp_path: Path) -> None:
    path = Path(exported(tmp_path, DIRECT))
    content = json.loads(path.read_text())
    for options in ({"convolution": {"axes": 1, "options": []}}, {"convolution": [["UPCAST", 0, 4]]}, [1]):
        content["winners"][0]["candidate"]["kernel_options"] = options
        path.write_text(json.dumps(content))
        with autotune.tuned(str(path)), pytest.warns(RuntimeWarning, match="winners cannot be read"):
            did = counted(lambda: conv().numpy())
        assert (did.hits, did.misses) == (0, 1)
        warn._warned.clear()


def test_a_winograd_lowering_keeps_what_fits_and_loses_what_does_not(tmp_path: Path) -> None:
    """With output channels in two loops, the filter's transform is another kernel; the others are the same."""
    plain = get_strategy("four_buffer").candidate({"tile": 2})
    chosen = tuple(
        (k.role, k.chosen(k.more(())[-1])) for k in tunable_kernels(SHAPE, plain, "CPU")
    )  # fmt: skip
    expected = shuffled().numpy()
    with autotune.tuned(exported(tmp_path, replace(plain, kernel_options=chosen))):
        alone = counted(lambda: conv().relu().realize())
        with pytest.warns(RuntimeWarning, match="options found for a kernel do not fit it here"):
            other = counted(lambda: shuffled().realize())
        output = shuffled().numpy()
    assert (alone.kernels_with_options, alone.option_fallbacks) == (4, 0)
    assert (other.kernels_with_options, other.option_fallbacks) == (3, 1)
    assert relative(output, expected) < TOLERANCE


def test_a_jit_captures_kernels_with_their_options(tmp_path: Path) -> None:
    expected = conv().relu().numpy()
    with autotune.tuned(exported(tmp_path, DIRECT)):
        step = TinyJit(lambda: conv().relu().realize())
        outputs = [step().numpy() for _ in range(4)]
    assert all(relative(output, expected) < TOLERANCE for output in outputs)


def test_a_schedule_that_tinygrad_has_cached_has_its_options(tmp_path: Path) -> None:
    with autotune.tuned(exported(tmp_path, DIRECT)):
        first, second = options_of(conv), []
        did = counted(lambda: second.extend(options_of(conv)))
    assert first == second == [("UPCAST:0:2", "UPCAST:2:2")]
    assert did.kernels_with_options == 0  # counted once, as all else


def test_the_renderer_is_that_of_the_device() -> None:
    assert opened("CPU").renderer is KERNEL.renderer


def test_what_heuristics_choose_is_of_the_flags_in_force() -> None:
    x, w = Tensor.empty(8, 32, 34, 34, device="NULL"), Tensor.empty(32, 32, 3, 3, device="NULL")
    [kernel] = [call.src[0] for call in x.conv2d(w).schedule_linear().src]
    renderer = OpenCLRenderer(Target("CL"))
    assert any(opt.op is OptOps.LOCAL for opt in heuristics_without_tensor_cores(kernel, renderer, flags_in_force()))
    with Context(NOLOCALS=1):
        chosen = heuristics_without_tensor_cores(kernel, renderer, flags_in_force())
    assert not any(opt.op is OptOps.LOCAL for opt in chosen)


def test_every_convolution_of_resnet18_has_its_winner_applied(tmp_path: Path) -> None:
    """`direct` with options for each, whatever else their kernels compute; nothing is compiled."""
    model, image = resnet18()
    device, direct, winners = describe_device("CPU"), Candidate.of("direct"), []
    for shape in find_convolutions(lambda: model(image)):
        [kernel] = tunable_kernels(shape, direct, "CPU")
        options = (("convolution", kernel.chosen((("UPCAST", 0, 2),))),)
        winner = a_winner(ConvKey(shape=shape, device=device), decided_at=1.0, state="verified")
        winners.append(replace(winner, candidate=replace(direct, kernel_options=options)))
    bundle.write(tmp_path / "winners.json", winners)
    with autotune.tuned(str(tmp_path / "winners.json")):
        did = counted(lambda: model(image).schedule_linear())
    assert (did.convolutions, did.hits, did.applied, did.misses, did.fallbacks) == (20, 20, 20, 0, 0)
    assert (did.kernels_with_options, did.option_fallbacks) == (20, 0)
