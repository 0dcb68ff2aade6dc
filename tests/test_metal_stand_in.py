"""The METAL stand-in finds what Metal does not define: every fault here was planted."""

from __future__ import annotations

import numpy as np
import pytest
from metal.compiler import MetalSourceError, compile_kernel, unavailable
from metal.kernel import HEADER, POSITIONS, execute
from metal.runtime import KernelFaultError
from metal.source import describe

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

N = 64
FLOATS = np.arange(N, dtype=np.float32)


def kernel(body: str, parameters: str = "device float* out, device float* x") -> str:
    return f"{HEADER}kernel void planted({parameters}, {POSITIONS}) {{\n{body}\n}}"


# Sums of neighbours through threadgroup memory: right only with the barrier.
NEIGHBOURS = """  threadgroup __attribute__((aligned(16))) float buf0[64];
  int lidx0 = lid.x; /* 64 */
  *(buf0+lidx0) = (*(x+lidx0));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  *(out+lidx0) = ((*(buf0+lidx0))+(*(buf0+((lidx0+1)&63))));"""


def run(body: str, *, local: int = N, grid: int = 1, order: int = 0, out: int = N, written: bool = True) -> np.ndarray:
    buffers = {"out": np.zeros(out, np.float32), "x": FLOATS}
    held = ("x",) if written else ()
    return execute(kernel(body), buffers, written=held, local=(local, 1, 1), grid=(grid, 1, 1), order=order)["out"]


@pytest.mark.parametrize("order", [0, 1, 7])
def test_threads_meet_at_a_barrier_in_every_order(order: int) -> None:
    assert (run(NEIGHBOURS, order=order) == FLOATS + np.roll(FLOATS, -1)).all()


@pytest.mark.parametrize("order", [0, 1, 7])
def test_a_removed_barrier_is_a_race_in_every_order(order: int) -> None:
    body = NEIGHBOURS.replace("  threadgroup_barrier(mem_flags::mem_threadgroup);\n", "")
    with pytest.raises(KernelFaultError, match=r"uninitialised|race"):
        run(body, order=order)


def test_a_missing_second_barrier_is_a_race_although_every_value_was_written() -> None:
    body = NEIGHBOURS + "\n  *(buf0+lidx0) = 0.0f;"  # the neighbour may not have read it yet
    with pytest.raises(KernelFaultError, match=r"race: thread \(1, 0, 0\).* writes 4 bytes at byte 4 of buf0, which"):
        run(body)


@pytest.mark.parametrize(("index", "element"), [("lidx0+1", 64), ("lidx0-1", -1)])
def test_an_index_off_by_one_is_out_of_bounds(index: str, element: int) -> None:
    with pytest.raises(KernelFaultError, match=rf"out of bounds: .* writes .* of out \(element {element} of 64\)"):
        run(f"  int lidx0 = lid.x;\n  *(out+({index})) = (*(x+lidx0));")


def test_a_vector_that_ends_beyond_a_buffer_is_out_of_bounds() -> None:
    with pytest.raises(KernelFaultError, match=r"out of bounds: .* reads 16 bytes at byte 248 of x"):
        run("  *(out+lid.x) = (*((device float4*)((x+62)))).x;", local=1)


def test_a_vector_off_its_alignment_is_misaligned() -> None:
    with pytest.raises(KernelFaultError, match=r"misaligned: .* reads 16 bytes at byte 4 of x"):
        run("  *(out+lid.x) = (*((device float4*)((x+1)))).x;", local=1)


def test_out_of_bounds_of_a_threadgroup_array() -> None:
    with pytest.raises(KernelFaultError, match=r"out of bounds: .* writes 4 bytes at byte 256 of buf0"):
        run(NEIGHBOURS.replace("*(buf0+lidx0) = ", "*(buf0+lidx0+1) = "), order=1)


def test_out_of_bounds_of_a_register_array() -> None:
    body = "  float buf0[4];\n  for (int i = 0; i < (int)(*(x+7)); i++) { *(buf0+i) = 1.0f; }\n  *(out) = (*(buf0+1));"
    with pytest.raises(KernelFaultError, match="out of bounds of a register array"):
        run(body, local=1)


@pytest.mark.parametrize(("grid", "local"), [(2, 1), (1, 2)])
def test_two_threads_that_write_one_element_race(grid: int, local: int) -> None:
    with pytest.raises(KernelFaultError, match=r"race: .* writes 4 bytes at byte 0 of out .*, which thread"):
        run("  *(out) = (*(x+lid.x));", grid=grid, local=local)


def test_a_barrier_does_not_order_device_memory() -> None:
    body = """  *(out+lid.x) = (*(x+lid.x));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  *(out+lid.x) = (*(out+((lid.x+1)&63)));"""
    with pytest.raises(KernelFaultError, match=r"race: .* reads 4 bytes"):
        run(body)


@pytest.mark.parametrize("order", [0, 1])
def test_a_barrier_that_some_threads_skip_diverges(order: int) -> None:
    body = """  if ((lid.x<32)) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  *(out+lid.x) = 1.0f;"""
    with pytest.raises(KernelFaultError, match=r"divergent barrier: .* waits at line 5, thread .* has ended"):
        run(body, order=order)


def test_threads_at_two_barriers_diverge() -> None:
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    with pytest.raises(KernelFaultError, match=r"divergent barrier: .* at line 4, thread .* is at line 5"):
        run(f"  if ((lid.x<32)) {{ {barrier} }}\n  else {{ {barrier} }}\n  *(out+lid.x) = 1.0f;")


def test_memory_that_was_never_written() -> None:
    with pytest.raises(KernelFaultError, match=r"uninitialised: .* reads 4 bytes at byte 0 of x"):
        run("  *(out+lid.x) = (*(x+lid.x));", written=False)
    with pytest.raises(KernelFaultError, match=r"uninitialised: .* reads 4 bytes at byte 0 of buf0"):
        run(NEIGHBOURS.replace("*(buf0+lidx0) = (*(x+lidx0));", ""))


def test_threadgroup_memory_does_not_outlive_its_threadgroup() -> None:
    body = NEIGHBOURS.replace("  *(buf0+lidx0) =", "  if ((gid.x<1)) *(buf0+lidx0) =").replace(
        "out+lidx0", "out+lidx0+gid.x*64"
    )
    with pytest.raises(KernelFaultError, match=r"uninitialised: .* of threadgroup \(1, 0, 0\)"):
        run(body, grid=2, out=2 * N)


def test_a_register_that_was_never_set_is_not_a_number() -> None:
    assert np.isnan(run("  float buf0[4];\n  *(out) = (*(buf0+(int)(*(x+1))));", local=1)[0])


MULTIPLY = """  simdgroup_float8x8 mat_a, mat_b, mat_c;
  int row = {row};
  int column = {column};
  for (int i = 0; i < 2; i++) {{
    mat_a.thread_elements()[i] = (*(x+(row*8+column+i)));
    mat_b.thread_elements()[i] = (*(x+(row*8+column+i)));
    mat_c.thread_elements()[i] = 0.0f;
  }}
  {condition}simdgroup_multiply_accumulate(mat_c, mat_a, mat_b, mat_c);
  for (int i = 0; i < 2; i++) {{ *(out+(row*8+column+i)) = mat_c.thread_elements()[i]; }}"""
# as in tinygrad's description of METAL's tensor core: row = l1 l2 of each half, columns in pairs
ROW, COLUMN = "(((lid.x>>4)<<2)|((lid.x>>1)&3))", "((((lid.x>>3)&1)<<2)|((lid.x&1)<<1))"


@pytest.mark.parametrize("order", [0, 1, 7])
def test_a_simdgroup_multiplies_matrices(order: int) -> None:
    matrix = FLOATS.reshape(8, 8)
    out = run(MULTIPLY.format(row=ROW, column=COLUMN, condition=""), local=32, order=order)
    assert (out.reshape(8, 8) == matrix @ matrix).all()


def test_a_wrong_map_of_lanes_gives_another_product() -> None:
    matrix = FLOATS.reshape(8, 8)
    swapped = ROW.replace("lid.x>>4", "lid.x>>3"), COLUMN.replace("lid.x>>3", "lid.x>>4")
    out = run(
        MULTIPLY.format(
            row=swapped[0].replace("((lid.x>>3)<<2)", "(((lid.x>>3)&1)<<2)"), column=swapped[1], condition=""
        ),
        local=32,
    )
    assert not (out.reshape(8, 8) == matrix @ matrix).all()


def test_a_simdgroup_operation_that_some_lanes_skip_diverges() -> None:
    with pytest.raises(KernelFaultError, match="divergent simdgroup operation"):
        run(MULTIPLY.format(row=ROW, column=COLUMN, condition="if ((lid.x<31)) "), local=32)


@pytest.mark.parametrize(("kind", "dtype", "bits"), [("half", np.float16, 11), ("bfloat", np.uint16, 8)])
def test_small_floats_round_at_every_step(kind: str, dtype: type, bits: int) -> None:
    """1 + 2**-bits is 1 again, and adding it twice does not find what was lost."""
    source = kernel(
        f"  {kind} small = ({kind})({2.0**-bits}f);\n  *(out) = ((float)(((({kind})(1.0f)+small)+small)));"
        f"\n  *(y+lid.x) = (({kind})(1.0f));",
        f"device float* out, device {kind}* y",
    )
    done = execute(source, {"out": np.zeros(1, np.float32), "y": np.zeros(1, dtype)}, local=(1, 1, 1))
    assert done["out"][0] == 1.0
    assert done["y"].tobytes() == {"half": b"\x00\x3c", "bfloat": b"\x80\x3f"}[kind]


def test_variables_are_passed_by_value() -> None:
    source = kernel("  *(out+lid.x) = ((float)((n*2)));", "device float* out, constant int& n")
    done = execute(source, {"out": np.zeros(1, np.float32)}, variables=(21,))
    assert done["out"][0] == 42


def test_source_that_is_none_is_refused_with_its_first_error() -> None:
    with pytest.raises(MetalSourceError, match=r"program_source:4:\d+: error: .*undeclared identifier 'nothing'"):
        compile_kernel(kernel("  *(out) = nothing;"))


def test_more_buffers_than_metal_binds_are_refused() -> None:
    parameters = ", ".join(f"device float* data{i}" for i in range(32))
    with pytest.raises(MetalSourceError, match="must be between 0 and 30"):
        compile_kernel(kernel("  *(data0) = 0.0f;", parameters))


def test_threadgroup_arrays_are_counted_in_bytes() -> None:
    arrays = "".join(f"  threadgroup {kind} buf{kind}[{n}];\n" for kind, n in (("float", 8), ("half", 4), ("bool", 3)))
    assert describe(kernel(arrays)).arrays == (("buffloat", 32), ("bufhalf", 8), ("bufbool", 3))
