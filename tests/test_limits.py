"""What a device allows a kernel is checked before its compiler has seen it, and once more when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tinygrad import Device, Tensor, dtypes
from tinygrad.dtype import AddrSpace
from tinygrad.engine.realize import compile_linear
from tinygrad.uop.ops import AxisType, KernelInfo, UOp

from strategies.graph import limits
from strategies.graph.limits import KernelLimitError, Limits, limited, limits_of, load
from tests.on_metal import fresh_metal, needs_metal

pytestmark = [needs_metal, pytest.mark.usefixtures(fresh_metal.__name__)]

Kernel = Callable[..., UOp]


def compiled(fxn: Kernel, *inputs: Tensor, device: str = "METAL") -> UOp:
    out = Tensor.empty(2048, device=device)
    linear = Tensor.custom_kernel(out, *inputs, fxn=fxn)[0].schedule_linear()
    with limited(device):
        return compile_linear(linear)


def through(space: AddrSpace, elements: int, threads: int = 4) -> Kernel:
    """A kernel whose values pass through an array of this many elements in `space`."""

    def kernel(out: UOp) -> UOp:
        i = UOp.range(2048 // threads, 0)
        thread = UOp.range(threads, 1, AxisType.LOCAL)
        array = UOp.placeholder((elements,), dtypes.float, slot=0, addrspace=space)
        filled = array.after(i, thread)[thread].set(1.0)
        stored = out[i * threads + thread].set(filled[thread], end=(i, thread))
        return stored.sink(arg=KernelInfo(name="through", opts_to_apply=()))

    return kernel


def adds(out: UOp, *inputs: UOp) -> UOp:
    i = UOp.range(2048, 0)
    return (
        out[i].set(sum((x[i] for x in inputs), UOp.const(0.0, dtypes.float)), end=i).sink(arg=KernelInfo(name="adds"))
    )


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that METAL's compiler gets to see."""
    seen: list[str] = []
    compiler = Device["METAL"].renderer.compiler
    original = compiler.compile
    monkeypatch.setattr(compiler, "compile", lambda source: (seen.append(source), original(source))[1])
    return seen


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (through(AddrSpace.LOCAL, 8193), r"through has 32772 bytes of threadgroup memory, METAL allows 32768"),
        (through(AddrSpace.LOCAL, 2048, threads=2048), r"through has 2048 threads per threadgroup, METAL allows 1024"),
        (through(AddrSpace.REG, 5000), r"through has 20000 bytes of arrays per thread, METAL allows 16384"),
    ],
)
def test_a_kernel_beyond_a_limit_never_reaches_the_compiler(kernel: Kernel, says: str, compiles: list[str]) -> None:
    with pytest.raises(KernelLimitError, match=says):
        compiled(kernel)
    assert compiles == []


@pytest.mark.parametrize("kernel", [through(AddrSpace.LOCAL, 8192), through(AddrSpace.LOCAL, 1024, threads=1024)])
def test_a_kernel_at_its_limits_compiles_and_loads(kernel: Kernel, compiles: list[str]) -> None:
    load(compiled(kernel))
    assert len(compiles) == 1


def test_buffers_are_counted(compiles: list[str]) -> None:
    inputs = [Tensor.empty(2048, device="METAL") for _ in range(31)]
    load(compiled(adds, *inputs[:30]))
    with pytest.raises(KernelLimitError, match="adds has 32 buffers and variables, METAL allows 31"):
        compiled(adds, *inputs)
    assert len(compiles) == 1


def test_source_has_a_budget(monkeypatch: pytest.MonkeyPatch, compiles: list[str]) -> None:
    monkeypatch.setitem(limits._BY_DEVICE, "METAL", replace(limits_of("METAL"), source_bytes=100))
    with pytest.raises(KernelLimitError, match=r"through has \d+ bytes of source, METAL allows 100"):
        compiled(through(AddrSpace.LOCAL, 64))
    assert compiles == []


def test_a_loaded_kernel_may_allow_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAL_STAND_IN_THREADS", "512")
    linear = compiled(through(AddrSpace.LOCAL, 1024, threads=1024))
    with pytest.raises(KernelLimitError, match=r"through has 1024 threads .* METAL allows this kernel 512"):
        load(linear)


def test_outside_of_the_block_nothing_is_limited() -> None:
    with pytest.raises(KernelLimitError):
        compiled(through(AddrSpace.LOCAL, 8193))
    assert "render" not in vars(Device["METAL"].renderer)


def test_a_block_within_another_leaves_that_ones_limits() -> None:
    with limited("METAL"):
        with limited("METAL"):
            pass
        out = Tensor.empty(2048, device="METAL")
        linear = Tensor.custom_kernel(out, fxn=through(AddrSpace.LOCAL, 8193))[0].schedule_linear()
        with pytest.raises(KernelLimitError):
            compile_linear(linear)
    assert "render" not in vars(Device["METAL"].renderer)


def test_what_is_known_of_devices() -> None:
    assert limits_of("METAL:1") == limits_of("METAL") != Limits()
    assert limits_of("CUDA") == limits_of("NV:3")
    assert limits_of("CPU") == Limits()
