"""What the winners page is asked for: read from its URL, written into its links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from api.dashboard.places import place_name
from autotune.winner import Winner

Numbered = tuple[int, Winner]


def _shape_order(winner: Winner) -> Any:
    shape = winner.key.shape
    return (shape.cin, shape.cout, shape.spatial, shape.kernel, shape.batch, shape.groups)


SORTS: dict[str, Callable[[Winner], Any]] = {
    "decided": lambda winner: -winner.decided_at,
    "shape": _shape_order,
    "time": lambda winner: winner.time_s.median,
    "default": lambda winner: winner.default_time_s.median,
    "ratio": lambda winner: winner.ratio.median,
    "error": lambda winner: winner.error or 0.0,
    "strategy": lambda winner: winner.candidate.strategy,
    "device": lambda winner: winner.key.device.device,
    "state": lambda winner: str(winner.state),
}
"""By what rows can be sorted; a `-` before the name turns the order round. The first is the default."""
SIZES = (50, 200, 1000)
MAX_TEXT = 200
STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class WinnersQuery:
    """Which winners, in which order, which page of them. What is not known falls back to the default."""

    q: str = ""
    device: str = ""
    strategy: str = ""
    state: str = ""
    sort: str = "decided"
    page: int = 1
    size: int = SIZES[0]

    @classmethod
    def of(cls, params: Any) -> WinnersQuery:
        """From the parameters of a URL, whatever somebody wrote there."""
        texts = {name: str(params.get(name, ""))[:MAX_TEXT] for name in ("q", "device", "strategy", "state")}
        sort = params.get("sort", "decided")
        size, page = _number(params.get("size")), _number(params.get("page"))
        return cls(
            **{**texts, "device": texts["device"].upper()},
            sort=sort if sort.removeprefix("-") in SORTS else "decided",
            size=size if size in SIZES else SIZES[0],
            page=max(1, page),
        )

    def url(self, **changes: Any) -> str:
        """The address of this view with these changes; the first page unless they say another."""
        asked = replace(self, **{"page": 1, **changes})
        default = {field.name: field.default for field in fields(asked)}
        said = {name: value for name, value in asdict(asked).items() if value != default[name]}
        return f"/?{urlencode(said)}" if said else "/"

    def sorted_by(self, name: str) -> str | None:
        """`ascending` or `descending` if the rows are sorted by this column."""
        if self.sort.removeprefix("-") != name:
            return None
        return "descending" if self.sort.startswith("-") else "ascending"

    def matching(self, winners: Sequence[Numbered], stale: frozenset[str] = frozenset()) -> list[Numbered]:
        """Those asked for, in order; `stale` are the digests of those to which that applies."""
        words = self.q.lower().split()
        found = [item for item in winners if self._matches(item[1], words, stale)]
        key = SORTS[self.sort.removeprefix("-")]
        return sorted(found, key=lambda item: key(item[1]), reverse=self.sort.startswith("-"))

    def _matches(self, winner: Winner, words: Sequence[str], stale: frozenset[str]) -> bool:
        return (
            (not self.device or winner.key.device.device == self.device)
            and (not self.strategy or winner.candidate.strategy == self.strategy)
            and (not self.state or self.state in states(winner, stale))
            and (not words or all(word in _haystack(winner) for word in words))
        )

    @property
    def filtered(self) -> bool:
        """Whether something is left out."""
        return bool(self.q or self.device or self.strategy or self.state)


def states(winner: Winner, stale: frozenset[str]) -> tuple[str, ...]:
    """Its state, and `stale` where it is that, too."""
    return (str(winner.state), STALE) if winner.key.digest in stale else (str(winner.state),)


def facets(winners: Sequence[Numbered], stale: frozenset[str] = frozenset()) -> dict[str, Counter[str]]:
    """How many winners there are per device, strategy and state."""
    return {
        "device": Counter(winner.key.device.device for _, winner in winners),
        "strategy": Counter(winner.candidate.strategy for _, winner in winners),
        "state": Counter(state for _, winner in winners for state in states(winner, stale)),
    }


def _haystack(winner: Winner) -> str:
    return f"{winner.key} {winner.candidate} {winner.state} {place_name(winner.key.device)}".lower()


def _number(text: Any) -> int:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 8 else 0
