"""The first page: every shape on every device, its winner next to the better default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from api.answers import MAX_KNOWN
from api.dashboard.html import Html, join, tag
from api.dashboard.layout import command, document, page_link, panel
from api.dashboard.places import place_name
from api.dashboard.query import SIZES, Numbered, WinnersQuery, facets
from api.dashboard.words import decided, parameters, ratio_bar, shape_cell, stale_mark, state_mark, strategy_mark
from api.units import duration
from autotune.job import Job
from autotune.winner import Winner

EXAMPLE = "autotune tune 1x64x56x56 64x64x3x3 --padding 1"
COLUMNS = (
    ("shape", "Convolution", ""), ("device", "Device", "some"), ("strategy", "Lowering", ""), ("time", "Time", "n"),
    ("default", "Better default", "n wide"), ("ratio", "Ratio, 95% interval", "of"), ("error", "Error", "n wide"),
    ("decided", "State, age", "some"),
)  # fmt: skip
"""What they are sorted by, their title, their class: `wide` ones go first where room is short, then `some`."""


def winners_page(
    winners: Sequence[Numbered],
    jobs: Sequence[Job],
    query: WinnersQuery,
    *,
    address: str,
    now: float,
    stale: frozenset[str] = frozenset(),
) -> str:
    """`winners` are the latest, MAX_KNOWN at most, `stale` the digests of those measured under another driver, system,
    compiler or tinygrad than there is now; `now` is in seconds since the epoch."""
    active = sum(not job.state.ended for job in jobs)
    if not winners:
        return document("Winners", _first_steps(address, active), path="/")
    found = query.matching(winners, stale)
    return document(
        "Winners",
        tag("h1", "Winners"),
        tag("p", "The fastest verified lowering of each convolution, per device.", _active(active), class_="lead"),
        tag("p", f"The latest {len(winners):,}; `autotune winners` has all.", class_="note")
        if len(winners) >= MAX_KNOWN
        else None,
        _filters(query, facets(winners, stale), len(winners)),
        tag("div", _results(found, len(winners), query, stale, now), id="results"),
        path="/",
    )


def _first_steps(address: str, active: int) -> Html:
    begun = (
        tag("p", page_link(_jobs(active), "/tuning"), ": the first winner appears when its search ends.", class_="lead")
        if active
        else None
    )
    return join([
        tag("h1", "No winners yet"),
        begun,
        panel(
            "1. Find the fastest lowering of a convolution",
            tag("p", "Its input and weight are written as tinygrad prints shapes; a minute will do. ",
                page_link("Start it from here", "/tuning"), ", or in a terminal:"),
            command(f"AUTOTUNE_URL={address} {EXAMPLE}"),
        ),
        panel(
            "2. Use it, with no change to the model",
            command(f'import autotune\n\nautotune.install("{address}")'),
            tag("p", "Or run a program as it is:"),
            command(f"autotune run --source {address} script.py"),
        ),
    ])  # fmt: skip


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'} at work"


def _active(count: int) -> Html | None:
    return join([" ", page_link(_jobs(count), "/tuning"), "."]) if count else None


def _filters(query: WinnersQuery, counts: dict[str, Counter[str]], total: int) -> Html:
    search = tag(
        "label",
        "Search",
        tag("input", type="search", name="q", id="q", value=query.q, placeholder="64x64x3x3 blocked tile=4",
            maxlength=200, autocomplete="off"),
        class_="grow",
    )  # fmt: skip
    chosen = {"device": query.device, "strategy": query.strategy, "state": query.state}
    selects = [_select(name, name.capitalize(), chosen[name], counts[name], total) for name in chosen]
    button = tag("button", "Show")
    return tag(
        "form", search, selects, button, method="get", action="/", role="search", class_="filters", data_nav=True,
        data_target="#results",
    )  # fmt: skip


def _select(name: str, title: str, chosen: str, counts: Counter[str], total: int) -> Html:
    known = counts if not chosen or chosen in counts else {chosen: 0, **counts}
    options = [tag("option", f"all ({total})", value="")]
    options += [
        tag("option", f"{value} ({count})", value=value, selected=value == chosen)
        for value, count in sorted(known.items())
    ]
    return tag("label", title, tag("select", options, name=name, id=f"filter-{name}"))


def _results(found: Sequence[Numbered], total: int, query: WinnersQuery, stale: frozenset[str], now: float) -> Html:
    first = (query.page - 1) * query.size
    shown = found[first : first + query.size]
    said = f"{len(found):,} of {total:,} winners" if query.filtered else f"{total:,} winner{'' if total == 1 else 's'}"
    count = tag("p", said, class_="count", role="status", id="count")
    if not shown:
        back = page_link("Show all of them", "/") if query.filtered else page_link("First page", query.url())
        return tag("section", count, tag("p", "No winner is like that. ", back), class_="panel empty")
    head = tag("thead", tag("tr", [_head(name, title, kind, query) for name, title, kind in COLUMNS]))
    table = tag("table", head, tag("tbody", [_row(winner, now, stale) for _, winner in shown]), class_="winners")
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Winners")
    return tag("section", count, scroll, _pages(len(found), query), class_="panel")


def _head(name: str, title: str, kind: str, query: WinnersQuery) -> Html:
    order = query.sorted_by(name)
    turned = f"-{name}" if order == "ascending" else name
    link = page_link(title, query.url(sort=turned), data_target="#results", id=f"sort-{name}", class_=order)
    return tag("th", link, scope="col", class_=kind or None, aria_sort=order)


def _row(winner: Winner, now: float, stale: frozenset[str]) -> Html:
    device = winner.key.device
    error = "" if winner.error is None else f"{winner.error:.1e}"
    decided_ = tag("span", decided(winner, now), class_="sub")
    return tag(
        "tr",
        tag("th", shape_cell(winner.key), scope="row"),
        tag("td", device.title, tag("span", device.arch, class_="sub clip"), class_="some", title=place_name(device)),
        tag("td", strategy_mark(winner.candidate.strategy),
            tag("span", parameters(winner.candidate), class_="sub clip", title=parameters(winner.candidate) or None)),
        tag("td", duration(winner.time_s.median), class_="n"),
        tag("td", duration(winner.default_time_s.median), tag("span", winner.default.strategy, class_="sub"),
            class_="n wide"),
        tag("td", ratio_bar(winner.ratio), class_="of"),
        tag("td", error, class_="n wide"),
        tag("td", state_mark(str(winner.state)), stale_mark(winner, stale), decided_, class_="some"),
    )  # fmt: skip


def _pages(count: int, query: WinnersQuery) -> Html | None:
    last = max(1, -(-count // query.size))
    steps = [
        page_link(name, query.url(page=page), rel=rel, data_target="#results", id=f"page-{rel}")
        for rel, name, page in (("prev", "Previous", query.page - 1), ("next", "Next", query.page + 1))
        if 1 <= page <= last
    ]
    sizes = [
        page_link(str(size), query.url(size=size), data_target="#results", id=f"size-{size}",
                  aria_current="true" if size == query.size else None)
        for size in SIZES if count > SIZES[0]
    ]  # fmt: skip
    if not steps and not sizes:
        return None
    where = tag("span", f"page {query.page} of {last}", class_="note")
    rows = tag("span", "rows ", sizes, class_="sizes") if sizes else None
    return tag("nav", steps, where, rows, aria_label="Pages", class_="pages")
