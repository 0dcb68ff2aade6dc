"""tinygrad's edge: everything that knows tinygrad's internals. The names below are what a strategy is written with."""

from strategies.graph.cache_blocked import Blocks, lower_cache_blocked
from strategies.graph.implicit_gemm import lower_implicit_gemm
from strategies.graph.lowered import Lowered
from strategies.graph.match import Axis, Conv
from strategies.graph.matmul import Blocking
from strategies.graph.ranges import Ranges, extent
from strategies.graph.shared_memory import lower_shared_memory
from strategies.graph.tensor_cores import lower_tensor_cores
from strategies.graph.tensor_matmul import Tiling
from strategies.graph.winowrite import Plan, Stage, winowrite

__all__ = [
    "Axis", "Blocking", "Blocks", "Conv", "Lowered", "Plan", "Ranges", "Stage", "Tiling", "extent",
    "lower_cache_blocked", "lower_implicit_gemm", "lower_shared_memory", "lower_tensor_cores", "winowrite",
]  # fmt: skip
