"""tinygrad's own lowering: the graph is left as it is."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.registry import Strategy, register_strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """No parameters."""


register_strategy(
    Strategy(
        name="direct",
        params=Direct,
        lower=None,
        applies=lambda _: True,
        about="tinygrad's own lowering: one REDUCE over channels and taps, one kernel, its consumers fused.",
    )
)
