"""Which strategy wins where, and how far the others are behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from api.dashboard.html import Html, join, tag
from api.dashboard.layout import document, page_link, panel
from api.dashboard.places import place_id, place_name, places
from api.dashboard.words import colour, headline, shape_href, strategy_mark
from autotune.measurement import Measurement
from autotune.space import DEFAULTS
from autotune.statistics import median_ratio
from autotune.winner import Winner
from strategies.shape import ConvShape

SHADES = (0.35, 0.5, 0.7, 0.85, 0.97, 1.03, 1.5, 3.0, 10.0)
"""Upper ends of the heat map's shades: five faster than the better default, one as fast, the rest slower."""
MAX_HEAT, MIN_HEAT = 40, 8
"""Shapes in the heat maps of a page, and at least of each device: their measurements are all read for it."""

Relative = Mapping[str, float]


def map_page(winners: Sequence[Winner], heat: Mapping[str, Sequence[tuple[Winner, Relative]]], *, place: str) -> str:
    """`heat` has the places to be shown and, for some shapes of each, every strategy's best time over the better
    default's; `place` is the one chosen, empty for all."""
    known = places(winners)
    if not known:
        empty = panel("Nothing to map yet", tag("p", page_link("Tune a convolution", "/tuning"), " first."))
        return document("Map", tag("h1", "Map"), empty, path="/map")
    options = [tag("option", f"all ({len(known)})", value="")]
    options += [tag("option", place_name(device), value=name, selected=name == place) for name, device in known.items()]
    chosen = tag("label", "Device", tag("select", options, name="place", id="place"), class_="grow")
    shown = {name: [w for w in winners if place_id(w.key.device) == name] for name in heat}
    return document(
        "Map",
        tag("h1", "Map"),
        tag("p", "Which strategy wins where: channels against spatial size, with the ratio to the better default.",
            class_="lead"),
        tag("form", chosen, tag("button", "Show"), method="get", action="/map", class_="filters", data_nav=True,
            data_target="#results"),
        tag("div",
            tag("p", [strategy_mark(name) for name in _strategies(winners)], class_="legend"),
            [_place(place_name(known[name]), shown[name], heat[name]) for name in shown],
            id="results"),
        path="/map",
    )  # fmt: skip


def _place(name: str, winners: Sequence[Winner], heat: Sequence[tuple[Winner, Relative]]) -> Html:
    batches = sorted({winner.key.shape.batch for winner in winners})
    panels = [_panel(name, batch, [w for w in winners if w.key.shape.batch == batch]) for batch in batches]
    return join([tag("h2", name, class_="place"), tag("div", panels, class_="maps"), _heat(name, heat, len(winners))])


def relative_times(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Each strategy's best ratio to `direct`, over that of the better default: 1 is what tinygrad does by itself."""
    best: dict[str, float] = {}
    for m in measurements:
        if m.ok and 0 < len(m.times_s) == len(m.yardstick_times_s):
            ratio = median_ratio(m.times_s, m.yardstick_times_s)
            best[m.candidate.strategy] = min(ratio, best.get(m.candidate.strategy, math.inf))
    default = min((best[name] for name in DEFAULTS if name in best), default=None)
    return {name: ratio / default for name, ratio in best.items()} if default else {}


def _strategies(winners: Sequence[Winner]) -> list[str]:
    return sorted({winner.candidate.strategy for winner in winners})


def _row_name(shape: ConvShape) -> str:
    """The headline without what the columns and the panel say."""
    parts = headline(shape).split(" · ")
    return " · ".join([parts[0], *(part for part in parts[2:] if not part.startswith("batch "))])


def _panel(place: str, batch: int, winners: Sequence[Winner]) -> Html:
    sizes = sorted({winner.key.shape.spatial for winner in winners}, key=lambda size: (math.prod(size), size))
    rows: dict[str, dict[tuple[int, ...], list[Winner]]] = {}
    for winner in sorted(winners, key=lambda w: (w.key.shape.cin, w.key.shape.cout, w.key.shape.kernel)):
        row = rows.setdefault(_row_name(winner.key.shape), {})
        row.setdefault(winner.key.shape.spatial, []).append(winner)
    head = [tag("th", "×".join(map(str, size)), scope="col") for size in sizes]
    body = [
        tag("tr", tag("th", name, scope="row"), [_cell(row.get(size, [])) for size in sizes])
        for name, row in rows.items()
    ]
    corner = tag("td", "channels", class_="note")
    table = tag("table", tag("thead", tag("tr", corner, head)), tag("tbody", body), class_="map")
    title = f"Batch {batch}"
    return panel(
        title, tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"{title} on {place}")
    )


def _cell(winners: Sequence[Winner]) -> Html:
    """One block per winner: there may be several, of other paddings or promises."""
    blocks = [
        page_link(
            [tag("span", w.candidate.strategy), tag("small", f"{w.ratio.median:.2f}")],
            shape_href(w.key), class_=f"block c{colour(w.candidate.strategy)}",
            title=f"{w.key}: {w.ratio.median:.2f} of {w.default.strategy}",
        )
        for w in winners
    ]  # fmt: skip
    return tag("td", blocks)


def _heat(place: str, rows: Sequence[tuple[Winner, Relative]], total: int) -> Html | None:
    if not rows:
        return None
    found = {name for _, times in rows for name in times}
    names = [n for n in DEFAULTS if n in found] + sorted(found - {*DEFAULTS})
    head = [tag("th", tag("span", name), scope="col", class_="turned") for name in names]
    body = [
        tag("tr", tag("th", page_link(headline(winner.key.shape), shape_href(winner.key), class_="shape"), scope="row"),
            [_shade(times.get(name)) for name in names])
        for winner, times in rows
    ]  # fmt: skip
    table = tag("table", tag("thead", tag("tr", tag("td"), head)), tag("tbody", body), class_="heat")
    shown = f", the latest {len(rows)} of {total} shapes" if len(rows) < total else ""
    return panel(
        "Strategy × shape",
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"Strategy by shape on {place}"),
        note=f"a strategy's best time over the better default's{shown}",
    )


def _shade(ratio: float | None) -> Html:
    if ratio is None:
        return tag("td", tag("span", "·", aria_label="not measured", role="img"))
    at = next((number for number, end in enumerate(SHADES) if ratio < end), len(SHADES))
    return tag("td", f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}", class_=f"h{at}")
