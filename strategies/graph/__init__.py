"""tinygrad's edge: everything that knows tinygrad's internals. The names below are what a strategy is written with."""

from tinygrad.uop.ops import UOp

from strategies.graph.kron import Ranges
from strategies.graph.match import Axis, Conv
from strategies.graph.winowrite import Plan, Stage, winowrite

__all__ = ["Axis", "Conv", "Plan", "Ranges", "Stage", "UOp", "winowrite"]
