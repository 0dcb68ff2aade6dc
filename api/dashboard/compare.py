"""Two devices or two versions side by side: the same convolutions, what wins on each, how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from api.dashboard import figures
from api.dashboard.html import Html, join, tag
from api.dashboard.layout import chart, document, page_link, panel
from api.dashboard.places import place_id, place_name, places
from api.dashboard.words import finite_json, headline, parameters, shape_href, strategy_mark
from api.units import duration
from autotune.winner import Winner
from strategies.key import DeviceSpec

MAX_DRAWN = 40
MAX_ROWS = 500
SIDES = ("a", "b")

Pair = tuple[Winner, Winner]


def compare_page(winners: Sequence[Winner], *, a: str, b: str) -> str:
    """`a` and `b` are ids of places; what is not known becomes the first and the second that there are."""
    known = places(winners)
    if len(known) < 2:
        return document("Compare", tag("h1", "Compare"), _one_place(known), path="/compare")
    names = list(known)
    a = a if a in known else next(name for name in names if name != b)
    b = b if b in known and b != a else next(name for name in names if name != a)
    pairs = paired(winners, a, b)
    labels = (place_name(known[a]), place_name(known[b]))
    return document(
        "Compare",
        tag("h1", "Compare"),
        tag("p", "The same convolutions on two devices, or under two versions or flags.", class_="lead"),
        tag("form", _select("a", a, known), _select("b", b, known), tag("button", "Show"), method="get",
            action="/compare", class_="filters", data_nav=True, data_target="#results"),
        tag("div", _pairs(pairs, labels), id="results"),
        path="/compare",
    )  # fmt: skip


def paired(winners: Sequence[Winner], a: str, b: str) -> list[Pair]:
    """Winners of the same computation and policy at both places, by shape."""
    sides: tuple[dict[object, Winner], dict[object, Winner]] = ({}, {})
    for winner in winners:
        where = place_id(winner.key.device)
        for name, side in zip((a, b), sides, strict=True):
            if where == name:
                side[(winner.key.shape.canonical(), winner.key.policy)] = winner
    both = [(sides[0][what], sides[1][what]) for what in sides[0] if what in sides[1]]
    return sorted(both, key=lambda pair: (pair[0].key.shape.cin, pair[0].key.shape.cout, pair[0].key.shape.spatial))


def _one_place(known: Mapping[str, DeviceSpec]) -> Html:
    where = next((place_name(device) for device in known.values()), "")
    said = f"So far there are winners of {where} alone. " if where else "There are no winners yet. "
    return panel(
        "Two are needed",
        tag("p", said, "Tune the same convolutions on another device, with other flags or another tinygrad, or bring "
            "winners from elsewhere with ", tag("code", "autotune import"), ": then they stand here side by side."),
    )  # fmt: skip


def _select(side: str, chosen: str, known: Mapping[str, DeviceSpec]) -> Html:
    options = [tag("option", place_name(d), value=name, selected=name == chosen) for name, d in known.items()]
    title = "Left" if side == SIDES[0] else "Right"
    return tag("label", title, tag("select", options, name=side, id=f"compare-{side}"), class_="grow")


def _pairs(pairs: Sequence[Pair], labels: tuple[str, str]) -> Html:
    if not pairs:
        return panel("Nothing in common", tag("p", "No convolution has a winner on both."))
    drawn = finite_json(figures.pairs(pairs[:MAX_DRAWN], labels))
    height = "tall" if len(pairs) > 8 else "medium"
    agree = sum(left.candidate == right.candidate for left, right in pairs)
    note = f"{len(pairs)} convolution{'' if len(pairs) == 1 else 's'} on both; the same lowering wins {agree} of them"
    picture = chart("pairs", drawn, label=f"Times of the winners: {note}", size=height)
    head = ("Convolution", labels[0], "Time", labels[1], "Time", "Right over left")
    titles = [tag("th", name, scope="col", class_="n" if name in ("Time", head[-1]) else None) for name in head]
    rows = [_row(left, right) for left, right in pairs[:MAX_ROWS]]
    table = tag("table", tag("thead", tag("tr", titles)), tag("tbody", rows), class_="pairs")
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Side by side")
    return join([panel("Time on each", picture, note=note), panel("Side by side", scroll)])


def _row(left: Winner, right: Winner) -> Html:
    return tag(
        "tr",
        tag("th", tag("span", headline(left.key.shape)), tag("span", str(left.key.shape), class_="sub"), scope="row"),
        _side(left),
        tag("td", duration(left.time_s.median), class_="n"),
        _side(right),
        tag("td", duration(right.time_s.median), class_="n"),
        tag("td", f"{right.time_s.median / left.time_s.median:.3g}", class_="n"),
    )


def _side(winner: Winner) -> Html:
    mark = strategy_mark(winner.candidate.strategy)
    return tag("td", page_link(mark, shape_href(winner.key), class_="plain"),
               tag("span", parameters(winner.candidate), class_="sub clip"))  # fmt: skip
