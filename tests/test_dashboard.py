"""The dashboard's pages as text: complete, escaped, without inline script, useful when there is nothing to show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import CPU, OneDevice, body, key_of, served, until, winner_of

from api.dashboard.check import check
from api.dashboard.html import VOID, Html, join, tag
from api.dashboard.jobs import jobs_page
from api.dashboard.query import SIZES, SORTS, WinnersQuery
from api.dashboard.shape import shape_page
from api.dashboard.winners import winners_page
from api.dashboard.words import BAR_WIDTH, PALETTE, colour
from api.present import Present
from api.settings import Settings
from api.time_left import job_time_left_s, key_time_left_s
from autotune.job import Budget, Job, JobState
from autotune.winner import Interval, Winner, WinnerState
from db import open_store
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.registry import strategies
from strategies.shape import ConvShape

STATIC = Path(__file__).parent.parent / "api" / "static"
EVIL = '<script>alert("1")</script>\'&'
ADDRESS = "http://127.0.0.1:8000"


class Page(HTMLParser):
    """Text, links and tags; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(*winners: Winner, jobs: tuple[Job, ...] = (), now: float = 1000.0, **query: str) -> Page:
    numbered = list(enumerate(winners, 1))
    return Page(winners_page(numbered, jobs, WinnersQuery.of(query), address=ADDRESS, now=now))


def job(state: JobState, **changes: object) -> Job:
    return replace(Job(id="j1", keys=(key_of(), key_of(32)), budget=Budget(trials=3), state=state), **changes)  # type: ignore[arg-type]


def rows(page: Page) -> int:
    return sum(attrs.get("scope") == "row" for attrs in page.all("th"))


# Elements


@settings(deadline=None)
@given(st.text(), st.text())
def test_text_comes_back_as_it_went_in(text: str, value: str) -> None:
    page = Page(tag("p", [text, None, [3]], title=value, hidden=True, lang=None))
    expected = (text + "3").replace("\r\n", "\n").replace("\r", "\n")
    assert page.text.replace("\r\n", "\n").replace("\r", "\n") == expected
    [attributes] = page.all("p")
    assert set(attributes) == {"title", "hidden"}
    assert (attributes["title"] or "") == value


def test_html_is_not_escaped_twice() -> None:
    assert tag("b", tag("i", "<")) == "<b><i>&lt;</i></b>"
    assert join([Html("<hr/>"), "<"]) == "<hr/>&lt;"
    assert tag("input", name="a", aria_label='"') == '<input name="a" aria-label="&quot;"/>'


# Winners


def test_nothing_yet_says_what_to_do_first() -> None:
    page = page_of()
    assert "No winners yet" in page.text
    assert "autotune tune 1x64x56x56 64x64x3x3 --padding 1" in page.text
    assert f'autotune.install("{ADDRESS}")' in page.text
    assert "1 job at work" in page_of(jobs=(job(JobState.RUNNING),)).text


def test_winner_is_shown_with_its_interval() -> None:
    page = page_of(winner_of(key_of()), now=1000.0 + 7200)
    for shown in (str(key_of().shape), "64 → 64 · 56×56 · 3×3", "four_buffer", "tile 4", "1.00 ms", "2.00 ms",
                  "0.500", "0.480–0.550", "1.5e-06", "2 h", "verified"):  # fmt: skip
        assert shown in page.text, shown
    assert f"/shape/{key_of().digest}" in [link.get("href") for link in page.all("a")]
    [bar] = page.all("svg")
    assert bar["aria-label"] == "0.500 (0.480-0.550)"
    drawn = {str(rect["class"]): float(rect["width"] or 0) for rect in page.all("rect")}
    assert drawn["faster"] == pytest.approx(0.5 * drawn["track"])


@pytest.mark.parametrize("ratio", [Interval(median=1.0, low=0.9, high=1.1), Interval(median=50.0, low=1, high=1e9)])
def test_bar_stays_in_its_place(ratio: Interval) -> None:
    page = page_of(replace(winner_of(key_of()), ratio=ratio))
    widths = [float(a["width"] or 0) for a in page.all("rect")] + [float(a["x2"] or 0) for a in page.all("line")]
    assert max(widths) <= BAR_WIDTH
    assert "faster" not in [rect["class"] for rect in page.all("rect")]


def test_what_is_stale_is_marked_and_found() -> None:
    old, fresh = winner_of(key_of()), winner_of(key_of(32))
    old = replace(old, key=replace(old.key, device=replace(CPU, driver="1.0")))
    fresh = replace(fresh, key=replace(fresh.key, device=replace(CPU, driver="2.0")))
    elsewhere = replace(old, key=replace(old.key, device=replace(CPU, driver="1.0", arch="another")))

    class Upgraded(OneDevice):
        def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
            return replace(CPU, driver="2.0")

    present = Present()
    stale = until(lambda: present.stale([old, fresh, elsewhere], Upgraded()))
    assert stale == {old.key.digest}
    numbered, query = [(1, old), (2, fresh)], WinnersQuery.of({"state": "stale"})
    page = Page(winners_page(numbered, (), query, address=ADDRESS, now=2000.0, stale=stale))
    assert rows(page) == 1
    assert "1 of 2 winners" in page.text
    assert "stale (1)" in page.text


def test_a_guess_has_no_age() -> None:
    page = page_of(replace(winner_of(key_of()), state=WinnerState.GUESS, decided_at=0.0), now=2e9)
    assert "not measured" in page.text


def test_numbers_that_are_none_do_not_break_it() -> None:
    nan = Interval(median=float("nan"), low=float("nan"), high=float("inf"))
    assert rows(page_of(replace(winner_of(key_of()), ratio=nan, time_s=nan, error=None))) == 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (WinnerState.VERIFIED, "this one on CPU"),
        (WinnerState.REVOKED, "but not this one, which is revoked"),
        (WinnerState.GUESS, "unless guesses=True"),
    ],
)
def test_a_shape_says_where_its_winner_is_applied(state: WinnerState, said: str) -> None:
    winner = replace(winner_of(key_of()), state=state)
    assert said in shape_page(key_of(), [(1, winner)], (), (), current=1, address=ADDRESS, now=1000.0)


def test_everything_from_elsewhere_is_escaped() -> None:
    evil = ConvKey(
        shape=key_of().shape, device=DeviceSpec(device=EVIL, flags=((EVIL, EVIL),)), policy=Policy(frozen_weights=True)
    )
    winner = replace(
        winner_of(evil), candidate=Candidate.of(EVIL, **{EVIL: EVIL}), default=Candidate.of(EVIL), times_s={EVIL: 1.0}
    )
    broken = job(JobState.FAILED, id=EVIL, keys=(evil,), error=EVIL, progress={"key": EVIL, "waiting_for": EVIL})
    query = WinnersQuery.of({"q": "alert", "device": EVIL})
    pages = [
        winners_page([(1, winner)] * 60, [broken], replace(query, device=EVIL), address=ADDRESS, now=1.0),
        winners_page([(1, winner)], [broken], query, address=ADDRESS, now=1.0),
        jobs_page([broken], {"input": EVIL, "dtype": EVIL}, now=1.0),
    ]
    for html in pages:
        assert "<script>" not in html
        page = Page(html)
        assert all(str(script["src"]).startswith("/static/") for script in page.all("script"))
        assert EVIL in page.text or EVIL.upper() in page.text
        assert not any(name.startswith("on") or name == "style" for _, attrs in page.tags for name in attrs)
        assert all(str(link["href"]).startswith(("/", "#")) for link in page.all("a"))


def some_winners(count: int) -> list[Winner]:
    devices = (DeviceSpec(device="CPU"), DeviceSpec(device="CUDA", arch="sm_90"))
    winners = []
    for number in range(count):
        shape = ConvShape.of((1, 1 + number, 8, 8), (4, 1 + number, 3, 3))
        strategy = "direct" if number % 3 else "blocked"
        ratio = 0.2 + 0.8 * ((number * 7) % count) / count
        winners.append(
            replace(
                winner_of(ConvKey(shape=shape, device=devices[number % 2]), strategy=strategy),
                ratio=Interval(median=ratio, low=ratio, high=ratio), decided_at=float(number),
            )
        )  # fmt: skip
    return winners


@settings(deadline=None, max_examples=40)  # other programs run here too
@given(
    st.sampled_from(sorted(SORTS)), st.booleans(), st.sampled_from(["", "cuda", "blocked 3x3", "no such thing"]),
    st.sampled_from(["", "CPU"]), st.integers(1, 4),
)  # fmt: skip
def test_pages_show_each_match_once_and_in_order(sort: str, down: bool, text: str, device: str, page: int) -> None:
    winners = list(enumerate(some_winners(120), 1))
    query = WinnersQuery.of({"sort": f"-{sort}" if down else sort, "q": text, "device": device, "page": str(page)})
    found = query.matching(winners)
    assert {number for number, _ in found} == {
        number for number, winner in winners
        if device in ("", winner.key.device.device)
        and all(word in f"{winner.key} {winner.candidate}".lower() for word in text.split())
    }  # fmt: skip
    keys = [SORTS[sort](winner) for _, winner in found]
    assert keys == sorted(keys, reverse=down)
    shown = Page(winners_page(winners, [], query, address=ADDRESS, now=0.0))
    assert rows(shown) == max(0, min(query.size, len(found) - (page - 1) * query.size))


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from(["q", "device", "strategy", "state", "sort", "page", "size"]), st.text()))
def test_any_url_is_understood(params: dict[str, str]) -> None:
    query = WinnersQuery.of(params)
    assert query.size in SIZES
    assert query.page >= 1
    rows(page_of(*some_winners(3), **params))


def test_links_keep_the_rest_of_the_view() -> None:
    query = WinnersQuery.of({"q": "A&B", "device": "cpu", "sort": "-ratio", "page": "2"})
    assert query.url() == "/?q=A%26B&device=CPU&sort=-ratio"
    assert query.url(page=3) == "/?q=A%26B&device=CPU&sort=-ratio&page=3"
    assert WinnersQuery().url() == "/"
    page = page_of(*some_winners(120), device="CPU", page="2", sort="ratio")
    links = {link.get("rel"): link["href"] for link in page.all("a")}
    assert links["prev"] == "/?device=CPU&sort=ratio"
    assert "next" not in links
    assert [attrs.get("aria-sort") for attrs in page.all("th") if attrs.get("aria-sort")] == ["ascending"]


def test_no_match_leads_back() -> None:
    page = page_of(winner_of(key_of()), device="METAL")
    assert "0 of 1 winners" in page.text
    assert "Show all of them" in page.text
    assert "METAL (0)" in page.text


# Jobs


def test_jobs_say_what_they_do_and_what_to_do() -> None:
    running = job(
        JobState.RUNNING, done_keys=1, budget=Budget(seconds=60), started_at=10.0,
        progress={"fraction": 0.5, "used_s": 30.0, "trials": 7, "failed": 2, "ratio": 0.4, "key": "THE KEY",
                  "best": {"strategy": "blocked"}},
    )  # fmt: skip
    page = Page(jobs_page([running], {}, now=40.0))
    for said in ("7 candidates, 2 failed", "blocked", "at 0.40 of direct", "about 30 s left", "2 of 2", "THE KEY"):
        assert said in page.text, said
    assert [bar["value"] for bar in page.all("progress")] == ["0.750"]
    assert [button["data-delete"] for button in page.all("button") if button.get("data-delete")] == ["/jobs/j1"]
    failed = job(JobState.FAILED, keys=(key_of(13),), error="direct failed: no memory", ended_at=20.0, started_at=10.0)
    page = Page(jobs_page([failed], {}, now=40.0))
    assert "direct failed: no memory" in page.text
    again = [str(link["href"]) for link in page.all("a") if str(link["href"]).startswith("/tuning?")]
    assert again == [
        "/tuning?input=1x13x56x56&weight=64x13x3x3&padding=1&stride=1&dilation=1&groups=1&dtype=float32&device=CPU"
    ]
    assert not page.all("progress")


def test_time_left() -> None:
    queued = job(JobState.QUEUED, budget=Budget(seconds=60))
    assert job_time_left_s(queued) == 120
    assert job_time_left_s(replace(queued, state=JobState.RUNNING, progress={"used_s": 20.0})) == 100
    assert job_time_left_s(replace(queued, state=JobState.DONE)) is None
    assert key_time_left_s(Budget(trials=10), 0.0, 0) is None
    assert key_time_left_s(Budget(trials=10), 8.0, 4) == 12
    assert key_time_left_s(Budget(seconds=9, trials=10), 8.0, 4) == 1
    assert key_time_left_s(Budget(seconds=9), 30.0, 4) == 0


# The form


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"input": "1x64x56", "weight": "64x64x3x3"}, "input", "same number of dimensions"),
        ({"input": "1x64xx", "weight": "64x64x3x3"}, "input", "must look like"),
        ({"input": "1x64x56x56", "weight": "64x32x3x3"}, "weight", "input has 64 channels"),
        ({"input": "1x64x56x56", "weight": "64x64x3x3", "padding": "a"}, "padding", "must look like"),
        ({"input": "1x64x56x56", "weight": "64x64x3x3", "groups": "3"}, "groups", "must divide"),
        ({"input": "1x64x56x56", "weight": "64x64x3x3", "device": "METAL"}, "device", "no device METAL"),
        ({"input": "1x64x56x56", "weight": "64x64x3x3", "budget": "long"}, "budget", "looks like 60s"),
        ({"input": "64x64x256x256", "weight": "64x64x3x3"}, "input", "AUTOTUNE_MAX_SHAPE_MACS"),
        ({"input": "1x64x2x2", "weight": "64x64x3x3"}, "weight", "does not fit"),
        ({"input": "1x64x56x56"}, "weight", ""),
        ({}, "input", ""),
    ],
)
def test_form_says_what_is_wrong_and_where(tmp_path: Path, fields: dict[str, str], field: str, problem: str) -> None:
    with open_store(tmp_path / "a.db") as store:
        answer = check(fields, OneDevice(), store, Settings(db=":", max_shape_macs=1 << 30))
    assert answer["field"] == field
    assert problem in answer["problem"]
    assert "body" not in answer


def test_form_gives_what_is_posted(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    with open_store(database) as store:
        store.decide(winner_of(key_of()))
    with served(database) as service:
        query = {"input": "1x64x56x56", "weight": "64x64x3x3", "padding": "1", "budget": "2m"}
        answer = service.http.get("/dashboard/check", params=query).json()
        assert answer["known"]["href"] == f"/shape/{key_of().digest}"
        assert any("1x64x56x56" in said for said in answer["says"])
        submitted = service.http.post("/tune", json=answer["body"]).json()
        assert submitted["digests"] == [key_of().digest]
        assert submitted["budget"]["seconds"] == 120


# Style and serving


def test_states_and_strategies_have_a_colour() -> None:
    style = (STATIC / "dashboard.css").read_text()
    for state in (*WinnerState, *JobState):
        if state is not JobState.CANCELLED:  # as plain as it is
            assert f".state.{state}" in style
    assert all(f"--c{number}:" in style and f".c{number} " in style for number in range(PALETTE))
    ours = [colour(item.name) for item in strategies()]
    assert len({*ours}) >= min(8, len(ours))
    assert not re.search(r"url\(|@import|https?:", style)


def test_vendored_library_has_its_licence() -> None:
    said = (STATIC / "vendor" / "README.md").read_text()
    for file in (STATIC / "vendor").iterdir():
        assert file.name == "README.md" or file.name in said, file
    assert "Apache License" in (STATIC / "vendor" / "LICENSE.echarts").read_text()


def test_served_pages(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    with open_store(database) as store:
        store.decide(winner_of(key_of()))
    with served(database, trial_s=5.0) as service:
        response = service.http.get("/")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        page = Page(response.text)
        assert str(key_of().shape) in page.text
        links = [str(link["href"]) for link in page.all("a") + page.all("link") if "#" not in str(link["href"])]
        for link in links + [str(script["src"]) for script in page.all("script")]:
            assert service.http.get(link).status_code == 200, link
        script = service.http.get("/static/js/pages.js")
        assert script.headers["cache-control"] == "no-cache"  # each release has its own
        known = {"If-None-Match": script.headers["etag"]}
        assert service.http.get("/static/js/pages.js", headers=known).status_code == 304
        assert service.http.get("/static/../settings.py").status_code == 404
        service.http.post("/tune", json=body(32))
        until(lambda: "running" in Page(service.http.get("/tuning").text).text)
