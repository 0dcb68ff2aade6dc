"""Winners as tables: for the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import UTC, datetime

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from api.text import shorten
from api.units import duration, lowering, ratio_text
from autotune.winner import Winner

STATE_STYLES = {"verified": "green", "pinned": "cyan", "provisional": "yellow", "guess": "yellow", "revoked": "red"}
OPTIONAL_COLUMNS = (("state", 100), ("device", 110), ("error", 120))
"""From which width of the window on they are shown."""
ROOMY, ROOMY_FOR_DEVICES = 100, 110
"""From which width on tinygrad's own two times are shown; where winners of several devices must be told apart."""
GAP, MIN_LOWERING = 2, 12
RIGHT = ("direct", "WINO=1", "default", "winner", "error")
CSV_COLUMNS = (
    "id", "input", "weight", "padding", "stride", "dilation", "groups", "dtype", "device", "arch", "flags",
    "candidate", "time_s", "time_low_s", "time_high_s", "default", "default_time_s", "ratio", "ratio_low",
    "ratio_high", "error", "workspace_bytes", "state", "decided_at",
)  # fmt: skip


def winners_table(winners: Iterable[Winner], width: int) -> Table:
    """One row per winner, next to tinygrad's own two lowerings; where room is short next to the better of them, and
    without parameters."""
    shown = list(winners)
    several = len({winner.key.device.title for winner in shown}) > 1
    roomy = width >= (ROOMY_FOR_DEVICES if several else ROOMY)
    ratio = "ratio (95%)" if roomy else "ratio"
    flagged = any(winner.key.device.flags for winner in shown)
    columns = {
        "convolution": [Text(str(winner.key.shape)) for winner in shown],
        **_defaults(shown, roomy),
        "winner": [Text(duration(winner.time_s.median)) for winner in shown],
        ratio: [_ratio(winner, roomy) for winner in shown],
        "lowering": [Text(lowering(winner.candidate) if roomy else winner.candidate.strategy) for winner in shown],
        "state": [Text(str(winner.state), style=STATE_STYLES.get(str(winner.state), "")) for winner in shown],
        "device": [Text(_device(winner)) for winner in shown],
        "error": [Text("" if winner.error is None else f"{winner.error:.1e}") for winner in shown],
    }
    for name, at_least in OPTIONAL_COLUMNS:
        if width < (ROOMY if name == "device" and flagged else at_least):
            del columns[name]
    limit = _lowering_limit(columns, width)
    columns["lowering"] = [Text(shorten(text.plain, limit)) for text in columns["lowering"]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name in RIGHT else "left", no_wrap=name != "convolution", overflow="fold"
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _lowering_limit(columns: dict[str, list[Text]], width: int) -> int:
    """How many characters of a lowering there is room for. Optional columns are removed from the last one on until
    no convolution is folded; the device stays where there are several."""
    while True:
        widths = {name: max(cell_len(name), *(text.cell_len for text in [Text(), *c])) for name, c in columns.items()}
        free = width - sum(widths.values()) + widths["lowering"] - GAP * (len(columns) - 1)
        if free >= MIN_LOWERING:
            return free
        several = len({text.plain for text in columns.get("device", ())}) > 1
        optional = [name for name, _ in OPTIONAL_COLUMNS if name in columns and not (several and name == "device")]
        if not optional:
            return MIN_LOWERING
        del columns[optional[-1]]


def _ratio(winner: Winner, roomy: bool) -> Text:
    text = ratio_text(winner.ratio) if roomy else f"{winner.ratio.median:.2f}"
    return Text(text, style="green" if winner.ratio.high < 1 else "")


def _device(winner: Winner) -> str:
    """`CPU`, or `CPU BEAM=1`: with other code generation flags it is another key."""
    return " ".join([winner.key.device.title, *(f"{name}={value}" for name, value in winner.key.device.flags)])


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
                device.title, device.arch, " ".join(f"{name}={value}" for name, value in device.flags),
                winner.candidate, winner.time_s.median, winner.time_s.low, winner.time_s.high,
                winner.default.strategy, winner.default_time_s.median, winner.ratio.median, winner.ratio.low,
                winner.ratio.high, winner.error, winner.workspace_bytes, winner.state, decided,
            )
        )  # fmt: skip
    return out.getvalue()


def _defaults(winners: list[Winner], roomy: bool) -> dict[str, list[Text]]:
    """tinygrad's own two lowerings, or the better of them; or the device, where there are several."""
    if not roomy and len({winner.key.device.title for winner in winners}) > 1:
        return {"on": [Text(winner.key.device.title) for winner in winners]}
    if not roomy:
        return {"default": [Text(duration(winner.default_time_s.median)) for winner in winners]}
    return {
        "direct": [Text(_default_time(winner, "direct")) for winner in winners],
        "WINO=1": [Text(_default_time(winner, "tensor_winograd")) for winner in winners],
    }


def _default_time(winner: Winner, name: str) -> str:
    """The median of one of tinygrad's own lowerings in the final, where it was there."""
    seconds = winner.times_s.get(name)
    if seconds is None and winner.default.strategy == name:
        seconds = winner.default_time_s.median
    return duration(float(seconds)) if isinstance(seconds, int | float) else "-"
