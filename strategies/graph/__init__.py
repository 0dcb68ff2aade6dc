"""tinygrad's edge: everything that knows tinygrad's internals. The names below are what a strategy is written with."""

from tinygrad.uop.ops import UOp

from strategies.graph.device import has_shared_memory
from strategies.graph.kron import Ranges
from strategies.graph.match import Axis, Conv
from strategies.graph.matmul import Blocking
from strategies.graph.winowrite import Plan, Stage, winowrite

__all__ = ["Axis", "Blocking", "Conv", "Plan", "Ranges", "Stage", "UOp", "has_shared_memory", "winowrite"]
