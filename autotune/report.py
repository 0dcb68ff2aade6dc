"""What the hook did with each convolution, and why."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from strategies.candidate import Candidate
from strategies.key import ConvKey


class Outcome(StrEnum):
    APPLIED = "applied"  # a winner, which replaced what tinygrad would have made
    DIRECT = "direct"  # a winner, which is tinygrad's own lowering
    MISS = "miss"  # no winner
    FALLBACK = "fallback"  # something failed: left as tinygrad made it


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One convolution of a schedule: what was done, by which candidate, on whose word, or why nothing was.

    `key` is what was looked up, None for a convolution that no key describes.
    """

    device: str
    outcome: Outcome
    reason: str
    candidate: Candidate | None = None
    key: ConvKey | None = None

    def __str__(self) -> str:
        what = str(self.key.shape) if self.key is not None else "a convolution of another kind"
        done = str(self.candidate) if self.outcome is Outcome.APPLIED else "left to tinygrad"
        return f"{what} on {self.device}: {done} ({self.reason})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What the hook did in this process. Every convolution met is a hit, a miss or a fallback.

    `hits` have a winner, of which `applied` were rewritten (the others' winner is tinygrad's own lowering); `misses`
    have none; `fallbacks` were left as tinygrad made them because something failed. `kernels_with_options` have the
    options that were found for them; `option_fallbacks` are kernels that these do not fit, with what is fused into
    them here, and whose options tinygrad chose. `seconds` were spent in the hook.
    """

    convolutions: int = 0
    hits: int = 0
    applied: int = 0
    misses: int = 0
    fallbacks: int = 0
    kernels_with_options: int = 0
    option_fallbacks: int = 0
    seconds: float = 0.0

    def taken_back(self) -> Stats:
        """What takes these back when it is added."""
        return Stats(**{f.name: -getattr(self, f.name) for f in fields(self)})


def tally(reports: tuple[Report, ...], *, sign: int = 1) -> Stats:
    """These reports counted; with `sign` -1, what takes them back."""
    count = {outcome: sign * sum(e.outcome is outcome for e in reports) for outcome in Outcome}
    return Stats(
        convolutions=sign * len(reports), hits=count[Outcome.APPLIED] + count[Outcome.DIRECT],
        applied=count[Outcome.APPLIED], misses=count[Outcome.MISS], fallbacks=count[Outcome.FALLBACK],
    )  # fmt: skip
