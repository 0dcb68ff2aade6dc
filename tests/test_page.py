"""The first page: complete, escaped, without script, useful when there is nothing to show."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from served import body, key_of, served, until, winner_of

from api.page import PAGE_SIZE, render
from autotune.job import Budget, Job, JobState
from autotune.winner import Interval, WinnerState
from db import open_store
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec, Policy

VOID = {"meta", "link", "input", "rect", "line"}
EVIL = '<script>alert("1")</script>\'&'


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


def job(state: JobState, **changes: object) -> Job:
    return replace(Job(id="j1", keys=(key_of(), key_of(32)), budget=Budget(trials=3), state=state), **changes)  # type: ignore[arg-type]


def test_nothing_yet_says_what_to_do_first() -> None:
    page = Page(render([], []))
    assert "No winners yet" in page.text
    assert "autotune tune 1x64x56x56 64x64x3x3 --padding 1" in page.text
    assert 'autotune.install("http://127.0.0.1:8000")' in page.text
    assert "on METAL" in Page(render([], [], device="METAL")).text
    assert "appears here" in Page(render([], [job(JobState.RUNNING)])).text
    assert "No more winners" in Page(render([], [], page=2)).text


def test_winner_is_shown_with_its_interval() -> None:
    page = Page(render([(7, winner_of(key_of()))], [], now=1000.0 + 7200))
    for shown in (
        str(key_of().shape),
        "four_buffer(tile=4)",
        "1.00 ms",
        "2.00 ms",
        "0.50 (0.48-0.55)",
        "1.5e-06",
        "2 h",
    ):
        assert shown in page.text
    assert "/winners/7" in [link.get("href") for link in page.all("a")]
    [bar] = page.all("svg")
    assert bar["aria-label"] == "0.50 (0.48-0.55)"
    [rectangle] = page.all("rect")
    assert (rectangle["class"], rectangle["width"]) == ("faster", "64.0")


@pytest.mark.parametrize("ratio", [Interval(median=1.0, low=0.9, high=1.1), Interval(median=50.0, low=1, high=1e9)])
def test_bar_stays_in_its_place(ratio: Interval) -> None:
    page = Page(render([(1, replace(winner_of(key_of()), ratio=ratio))], []))
    widths = [float(a["width"] or 0) for a in page.all("rect")] + [float(a["x2"] or 0) for a in page.all("line")]
    assert max(widths) <= 160
    assert page.all("rect")[0]["class"] == "same"


def test_numbers_that_are_none_do_not_break_it() -> None:
    nan = Interval(median=float("nan"), low=float("nan"), high=float("inf"))
    Page(render([(1, replace(winner_of(key_of()), ratio=nan, time_s=nan, error=None))], []))


def test_everything_from_elsewhere_is_escaped() -> None:
    evil = ConvKey(
        shape=key_of().shape, device=DeviceSpec(device=EVIL, flags=((EVIL, EVIL),)), policy=Policy(frozen_weights=True)
    )
    winner = replace(
        winner_of(evil), candidate=Candidate.of(EVIL, **{EVIL: EVIL}), default=Candidate.of(EVIL), times_s={EVIL: 1.0}
    )
    broken = job(JobState.FAILED, id=EVIL, keys=(evil,), error=EVIL, progress={"key": EVIL, "waiting_for": EVIL})
    html = render([(1, winner)] * (PAGE_SIZE + 1), [broken], device=EVIL, page=2)
    assert "<script" not in html
    page = Page(html)
    assert not page.all("script")
    assert page.text.count(EVIL) > PAGE_SIZE
    assert not any(name.startswith("on") or name == "style" for _, attrs in page.tags for name in attrs)
    links = [str(link["href"]) for link in page.all("a")]
    assert all(link.startswith("/") for link in links)


def test_running_jobs_refresh_the_page() -> None:
    running = job(JobState.RUNNING, done_keys=1, progress={"fraction": 0.5, "key": "1x32x56x56", "waiting_for": ""})
    page = Page(render([], [running]))
    assert any(meta.get("http-equiv") == "refresh" for meta in page.all("meta"))
    assert page.all("progress") == [{"max": "1", "value": "0.750"}]
    assert "1 of 2" in page.text
    done = Page(render([], [job(JobState.DONE, done_keys=2)]))
    assert not any(meta.get("http-equiv") == "refresh" for meta in done.all("meta"))
    assert done.all("progress") == [{"max": "1", "value": "1.000"}]


def test_pages_link_to_each_other() -> None:
    rows = [(number, winner_of(key_of())) for number in range(PAGE_SIZE + 1)]
    middle = Page(render(rows, [], device="A&B", page=2))
    links = {link.get("rel"): link["href"] for link in middle.all("a")}
    assert (links["prev"], links["next"]) == ("/?device=A%26B&page=1", "/?device=A%26B&page=3")
    assert sum(row.get("class") == "winner" for row in middle.all("tr")) == PAGE_SIZE
    assert "next" not in {link.get("rel") for link in Page(render(rows[:-1], [])).all("a")}


def test_states_have_a_style() -> None:
    style = (Path(__file__).parent.parent / "api" / "static" / "page.css").read_text()
    for state in (*WinnerState, *JobState):
        if state is not JobState.CANCELLED:  # as plain as it is
            assert f".state.{state}" in style
    assert "prefers-color-scheme: dark" in style
    assert not re.search(r"url\(|@import|https?:", style)


def test_served_page(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    with open_store(database) as store:
        store.decide(winner_of(key_of()))
    with served(database, trial_s=5.0) as service:
        response = service.http.get("/")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        page = Page(response.text)
        assert str(key_of().shape) in page.text
        assert str(key_of().shape) not in Page(service.http.get("/?device=metal").text).text
        [style] = page.all("link")
        assert service.http.get(str(style["href"])).headers["content-type"].startswith("text/css")
        for link in page.all("a"):
            assert service.http.get(str(link["href"])).status_code == 200, link
        service.http.post("/tune", json=body(32))
        until(lambda: "running" in Page(service.http.get("/").text).text)
