"""One convolution on one device: how it was searched for, what won, why, and how to use it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from api.dashboard import figures
from api.dashboard.html import Html, join, tag
from api.dashboard.jobs import again_href
from api.dashboard.kernels import kernels_panel
from api.dashboard.layout import chart, command, document, page_link, panel
from api.dashboard.places import place_name
from api.dashboard.query import Numbered
from api.dashboard.words import (
    age,
    decided,
    finite_json,
    headline,
    parameters,
    ratio_bar,
    shape_href,
    speedup,
    stale_mark,
    state_mark,
    strategy_mark,
)
from api.units import duration
from autotune.measurement import Measurement, Status
from autotune.statistics import median
from autotune.winner import WITHDRAWN_STATES, Winner, WinnerState
from strategies.key import ConvKey

MAX_ROWS = 500
ACTIONS = {
    WinnerState.PINNED: ("Pin", "tuning no longer replaces it"),
    WinnerState.REVOKED: ("Revoke", "nobody applies it"),
    WinnerState.BANNED: ("Ban", "this candidate never wins this shape again, another may"),
    WinnerState.VERIFIED: ("Take back", "as it was measured"),
}


def shape_page(
    key: ConvKey,
    history: Sequence[Numbered],
    measurements: Sequence[Measurement],
    elsewhere: Sequence[Winner],
    *,
    current: int | None,
    address: str,
    now: float,
    stale: frozenset[str] = frozenset(),
) -> str:
    """`history` is every decision, latest first, `current` the id of the one in force (None: none yet); `elsewhere`
    the winners of the same convolution on other devices, versions or flags."""
    winner = dict(history).get(current) if current is not None else None
    parts: list[Any] = [
        tag("p", page_link("Winners", "/"), " / ", key.device.device, class_="crumbs"),
        tag("h1", headline(key.shape)),
        tag("p", tag("code", str(key.shape)), " on ", place_name(key.device), class_="lead"),
    ]
    if winner is not None and current is not None:
        parts.append(_verdict(current, winner, stale, now))
    else:
        parts.append(_undecided(key))
    parts += [_measured(measurements, winner), _parameters(key, measurements, winner)]
    if winner is not None and current is not None:
        parts += [kernels_panel(current, winner, measurements), _use(key, winner, address)]
    parts += [_history(history, current, now), _elsewhere(elsewhere, now), _all_of_them(measurements, now)]
    return document(headline(key.shape), *parts, path="/")


def _verdict(number: int, winner: Winner, stale: frozenset[str], now: float) -> Html:
    facts = [
        ("Lowering", strategy_mark(winner.candidate.strategy)),
        ("Time", [tag("b", duration(winner.time_s.median), class_="figure"),
                  tag("span", f"{duration(winner.time_s.low)} to {duration(winner.time_s.high)}", class_="sub")]),
        ("Better default", [tag("span", duration(winner.default_time_s.median), class_="figure"),
                            tag("span", winner.default.strategy, class_="sub")]),
        ("Ratio, 95% interval", ratio_bar(winner.ratio)),
        ("Error", [tag("span", "none" if winner.error is None else f"{winner.error:.1e}", class_="figure"),
                   tag("span", "largest, against float64", class_="sub")]),
        ("State", [state_mark(str(winner.state)), stale_mark(winner, stale),
                   tag("span", _since(winner, now), class_="sub")]),
    ]  # fmt: skip
    shown = tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts")
    held = winner.state in (WinnerState.PINNED, *WITHDRAWN_STATES)
    wanted = [WinnerState.VERIFIED] if held else [WinnerState.PINNED, *WITHDRAWN_STATES]
    buttons = [
        tag("button", ACTIONS[state][0], type="button", class_="quiet", title=ACTIONS[state][1],
            data_patch=f"/winners/{number}", data_state=str(state))
        for state in wanted
    ]  # fmt: skip
    again = page_link("Search on", again_href(winner.key), class_="button")
    actions = tag("div", again, buttons, class_="actions")
    return tag("section", _headline(winner), shown, _chips(winner), actions, class_="panel", aria_label="The winner")


def _headline(winner: Winner) -> Html:
    """What one wants to know first, in large letters."""
    factor, _, rest = speedup(winner).partition(" times ")
    return tag("h2", [tag("b", f"{factor}×"), rest] if rest else factor, class_="headline")


def _chips(winner: Winner) -> Html | None:
    """The candidate's parameters, the tile first."""
    named = [text.rpartition(" ") for text in parameters(winner.candidate).split(", ") if text]
    chips = [tag("li", tag("span", name), " ", value) for name, _, value in named]
    return tag("ul", chips, class_="chips", aria_label="Parameters") if chips else None


def _since(winner: Winner, now: float) -> str:
    said = decided(winner, now)
    return {"now": "just now", "not measured": said}.get(said, f"{said} ago")


def _undecided(key: ConvKey) -> Html:
    return panel("No winner yet", tag("p", page_link("Search for one", again_href(key)), " or see ",
                                      page_link("the jobs", "/tuning"), "."))  # fmt: skip


def _measured(measurements: Sequence[Measurement], winner: Winner | None) -> Html | None:
    timed = figures.timed(measurements)
    if not timed:
        return None
    failed = Counter(str(m.status) for m in measurements if not m.ok)
    said = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in failed.items()) or "none failed"
    note = f"{len(measurements)} measurements, {said}"
    points = finite_json(figures.by_strategy(measurements, winner))
    steps = finite_json(figures.search_progress(measurements))
    scattered = chart("strategies", points, label=f"Time of each candidate by strategy: {note}")
    searched = chart("progress", steps, label="Ratio to direct of each candidate in order, and the best so far")
    return tag(
        "div",
        panel("Strategies against time", scattered, note=note),
        panel("The search", searched, note="ratio to direct, and the best so far"),
        class_="halves",
    )


def _parameters(key: ConvKey, measurements: Sequence[Measurement], winner: Winner | None) -> Html | None:
    timed = figures.timed(measurements)
    if not timed:
        return None
    fastest = min(timed, key=lambda m: median(m.times_s)).candidate.strategy
    strategy = winner.candidate.strategy if winner is not None and winner.candidate.params else fastest
    drawn = figures.by_parameter(measurements, strategy)
    if drawn is None:
        return None
    said = f"Each candidate of {strategy} from its parameters to its time"
    lines = tag("div", chart("parameters", finite_json(drawn), label=said, size="medium broad"), class_="scroll",
                tabindex="0", role="region", aria_label=said)  # fmt: skip
    loaded = tag(
        "div", tag("p", "Asking Optuna…", class_="note"), data_load=f"/dashboard/importance/{key.digest}?{strategy}"
    )
    return tag(
        "div",
        panel(f"Parameters of {strategy}", lines, note="each line a candidate; the darker, the faster"),
        panel("What matters", loaded, note="share of the differences that a parameter explains"),
        class_="halves two-one",
    )


def _use(key: ConvKey, winner: Winner, address: str) -> Html:
    params = "".join(f"\n    {name}={value!r}," for name, value in winner.candidate.params)
    named = f'"{winner.candidate.strategy}"'
    arguments = f"\n    {named},{params}\n" if params else named
    forced = f"import autotune\n\nwith autotune.forced({arguments}):\n    ..."
    document_ = json.dumps(
        {"key": key.to_json(), "candidate": winner.candidate.to_json(), "provenance": winner.provenance}, indent=2
    )
    return panel(
        "Use it",
        tag("p", f"Every winner in an unmodified model, {_where(winner)}:"),
        command(f'import autotune\n\nautotune.install("{address}")'),
        tag("p", "This lowering alone, on every convolution that it applies to:"),
        command(forced),
        tag("details", tag("summary", "JSON to reproduce it"), command(document_)),
    )


def _where(winner: Winner) -> str:
    """Whether this one is among those that the hook applies, and where: its key names device, version and flags."""
    if winner.state in WITHDRAWN_STATES:
        return f"but not this one, which is {winner.state}"
    if winner.state is WinnerState.GUESS:
        return "but not this one, which is a guess, unless guesses=True is given"
    return f"this one on {place_name(winner.key.device)}"


def _history(history: Sequence[Numbered], current: int | None, now: float) -> Html | None:
    if len(history) < 2:
        return None
    rows = [_decision_row(w, now, " in force" if number == current else "") for number, w in history]
    return panel("Decisions", _table(("Lowering", "Time", "Ratio", "State", "autotune", "Age"), rows, "Decisions"))


def _decision_row(w: Winner, now: float, note: str) -> Html:
    what = [strategy_mark(w.candidate.strategy), tag("span", parameters(w.candidate), class_="sub clip")]
    return tag(
        "tr",
        tag("th", what, scope="row"),
        tag("td", duration(w.time_s.median), class_="n"),
        tag("td", ratio_bar(w.ratio)),
        tag("td", state_mark(str(w.state)), note),
        tag("td", str(w.provenance.get("package", "")), class_="some"),
        tag("td", decided(w, now), class_="n"),
    )


def _elsewhere(winners: Sequence[Winner], now: float) -> Html | None:
    if not winners:
        return None
    rows = [
        tag("tr", tag("th", page_link(place_name(w.key.device), shape_href(w.key)), scope="row"),
            tag("td", strategy_mark(w.candidate.strategy)), tag("td", duration(w.time_s.median), class_="n"),
            tag("td", ratio_bar(w.ratio)), tag("td", decided(w, now), class_="n"))
        for w in winners
    ]  # fmt: skip
    titles = ("Device and version", "Lowering", "Time", "Ratio", "Age")
    return panel("The same convolution elsewhere", _table(titles, rows, "The same convolution elsewhere"))


def _all_of_them(measurements: Sequence[Measurement], now: float) -> Html | None:
    if not measurements:
        return None
    shown = sorted(measurements, key=lambda m: (not m.ok, median(m.times_s) if m.times_s else 0.0))[:MAX_ROWS]
    rows = [_measurement_row(m, now) for m in shown]
    titles = ("Candidate", "Status", "Time", "Error", "Compiled in", "Age")
    more = len(measurements) - len(shown)
    return panel(
        "Every measurement",
        tag("details", tag("summary", f"{len(measurements)} measurements as a table"),
            _table(titles, rows, "Every measurement"), tag("p", f"and {more} more") if more else None),
    )  # fmt: skip


def _measurement_row(m: Measurement, now: float) -> Html:
    return tag(
        "tr",
        tag("th", strategy_mark(m.candidate.strategy), tag("span", parameters(m.candidate), class_="sub"), scope="row"),
        tag("td", str(m.status), tag("span", m.reason[:200], class_="sub") if m.status is not Status.OK else None),
        tag("td", duration(median(m.times_s)) if m.times_s else "-", class_="n"),
        tag("td", "-" if m.error is None else f"{m.error:.1e}", class_="n"),
        tag("td", duration(m.compile_s) if m.compile_s else "-", class_="n"),
        tag("td", age(now - m.measured_at), class_="n"),
    )


def _table(titles: Sequence[str], rows: Sequence[Html], label: str) -> Html:
    numbers = ("Time", "Error", "Compiled in", "Age")
    head = [
        tag("th", t, scope="col", class_="n" if t in numbers else "some" if t == "autotune" else None) for t in titles
    ]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def importance_part(shares: Mapping[str, float], strategy: str, studies_url: str = "") -> Html:
    """What Optuna says of a strategy's parameters; loaded by itself, because it takes a second. `studies_url` is where
    its own dashboard runs."""
    said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    drawn = chart("importance", finite_json(figures.importance(shares, strategy)), label=f"Importance: {said}")
    return join([
        drawn if shares else tag("p", f"Too little was measured of {strategy} to say.", class_="note"),
        tag("p", tag("a", "The whole search in Optuna's dashboard", href=studies_url)) if studies_url else None,
    ])  # fmt: skip
