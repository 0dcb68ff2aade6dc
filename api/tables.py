"""Winners as tables: for the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from api.units import duration, lowering, ratio_text
from autotune.winner import Winner

STATE_STYLES = {"verified": "green", "pinned": "cyan", "provisional": "yellow", "guess": "yellow", "revoked": "red"}
OPTIONAL_COLUMNS = (("state", 100), ("device", 110), ("error", 120))
"""From which width of the window on they are shown."""
ROOMY, FULL_LOWERING = 100, 200
CSV_COLUMNS = (
    "id", "input", "weight", "padding", "stride", "dilation", "groups", "dtype", "device", "arch", "flags",
    "candidate", "time_s", "time_low_s", "time_high_s", "default", "default_time_s", "ratio", "ratio_low",
    "ratio_high", "error", "workspace_bytes", "state", "decided_at",
)  # fmt: skip


def winners_table(winners: Iterable[Winner], width: int) -> Table:
    """One row per winner, next to tinygrad's own two lowerings; what matters less goes where room is short."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("convolution", overflow="fold")
    for name in ("direct", "WINO=1", "winner"):
        table.add_column(name, justify="right", no_wrap=True)
    roomy = width >= ROOMY
    table.add_column("ratio (95%)" if roomy else "ratio", no_wrap=True)
    table.add_column("lowering", overflow="ellipsis", no_wrap=True)
    optional = [name for name, at_least in OPTIONAL_COLUMNS if width >= at_least]
    for name in optional:
        table.add_column(name, no_wrap=True, justify="right" if name == "error" else "left")
    for winner in winners:
        full = lowering(winner.candidate)
        ratio = ratio_text(winner.ratio) if roomy else f"{winner.ratio.median:.2f}"
        cells: dict[str, Text] = {
            "device": Text(winner.key.device.device),
            "state": Text(str(winner.state), style=STATE_STYLES.get(str(winner.state), "")),
            "error": Text("" if winner.error is None else f"{winner.error:.1e}"),
        }
        table.add_row(
            Text(str(winner.key.shape)),
            _default_time(winner, "direct"),
            _default_time(winner, "tensor_winograd"),
            duration(winner.time_s.median),
            Text(ratio, style="green" if winner.ratio.high < 1 else ""),
            Text(full if width >= FULL_LOWERING else shorten(full, 26 if roomy else 16)),
            *(cells[name] for name in optional),
        )
    return table


def shorten(text: str, limit: int) -> str:
    """Cut with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def winners_csv(winners: Iterable[tuple[int, Winner]]) -> str:
    """With a header; seconds and bytes as plain numbers, lists separated by spaces."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for winner_id, winner in winners:
        shape, device = winner.key.shape, winner.key.device
        decided = datetime.fromtimestamp(winner.decided_at, UTC).isoformat(timespec="seconds")
        writer.writerow(
            (
                winner_id, "x".join(map(str, shape.input_shape)), "x".join(map(str, shape.weight_shape)),
                " ".join(f"{before},{after}" for before, after in shape.padding),
                " ".join(map(str, shape.stride)), " ".join(map(str, shape.dilation)), shape.groups, shape.dtype,
                device.device, device.arch, " ".join(f"{name}={value}" for name, value in device.flags),
                winner.candidate, winner.time_s.median, winner.time_s.low, winner.time_s.high,
                winner.default.strategy, winner.default_time_s.median, winner.ratio.median, winner.ratio.low,
                winner.ratio.high, winner.error, winner.workspace_bytes, winner.state, decided,
            )
        )  # fmt: skip
    return out.getvalue()


def _default_time(winner: Winner, name: str) -> str:
    """The median of one of tinygrad's own lowerings in the final, where it was there."""
    seconds = winner.times_s.get(name)
    if seconds is None and winner.default.strategy == name:
        seconds = winner.default_time_s.median
    return duration(float(seconds)) if isinstance(seconds, int | float) else "-"
