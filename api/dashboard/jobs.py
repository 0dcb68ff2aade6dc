"""Jobs: a form that starts one, and what those that there are do right now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from api.dashboard.html import Html, join, tag
from api.dashboard.layout import document, page_link, panel
from api.dashboard.words import age, headline, shape_href, state_mark, strategy_mark
from api.text import shorten
from api.time_left import job_time_left_s
from api.units import fraction, span
from autotune.job import Job, JobState
from strategies.key import ConvKey
from strategies.shape import DTYPES

FIELDS = ("input", "weight", "padding", "stride", "dilation", "groups", "dtype", "device", "budget")
"""What the form takes, and what a link to it may fill in."""
MAX_NAMED = 12
"""Shapes of one job that are named; the rest is counted."""


def jobs_page(jobs: Sequence[Job], given: Mapping[str, str], *, now: float) -> str:
    """`given` are values for the form, as in the page's URL."""
    return document(
        "Jobs",
        tag("h1", "Jobs"),
        tag("div", _form(given), tag("div", job_list(jobs, now=now), id="jobs", data_events="/dashboard/events"),
            class_="columns"),
        path="/tuning",
    )  # fmt: skip


def job_list(jobs: Sequence[Job], *, now: float) -> Html:
    """The part of the page that changes while jobs run: also sent as an event."""
    if not jobs:
        text = "Nothing was tuned yet. Name a convolution, and its search is shown here while it runs."
        return panel("Jobs", tag("p", text, class_="empty"))
    active = [job for job in jobs if not job.state.ended]
    ended = [job for job in jobs if job.state.ended]
    parts = []
    if active:
        parts.append(panel("At work", tag("ul", [_job(job, now) for job in reversed(active)], class_="jobs")))
    if ended:
        parts.append(panel("Ended", tag("ul", [_job(job, now) for job in ended], class_="jobs")))
    return join(parts)


def _form(given: Mapping[str, str]) -> Html:
    def field(name: str, title: str, default: str, hint: str = "", **attributes: Any) -> Html:
        box = tag("input", name=name, id=f"tune-{name}", value=given.get(name) or default, autocomplete="off",
                  spellcheck="false", maxlength=100, aria_describedby=f"tune-{name}-said", **attributes)  # fmt: skip
        said = tag("span", hint, class_="hint", id=f"tune-{name}-said", data_hint=hint)
        return tag("label", tag("span", title), box, said)

    dtype = given.get("dtype") or DTYPES[0]
    types = tag("select", [tag("option", name, value=name, selected=name == dtype) for name in DTYPES],
                name="dtype", id="tune-dtype", aria_describedby="tune-dtype-said")  # fmt: skip
    form = tag(
        "form",
        tag("div",
            field("input", "Input", "", "batch x channels x sizes", placeholder="1x64x56x56", required=True),
            field("weight", "Weight", "", "outputs x channels x taps", placeholder="64x64x3x3", required=True),
            class_="pair"),
        tag("div", field("padding", "Padding", "1"), field("stride", "Stride", "1"),
            field("dilation", "Dilation", "1"), field("groups", "Groups", "1"), class_="four"),
        tag("div",
            tag("label", tag("span", "Type"), types,
                tag("span", class_="hint", id="tune-dtype-said", data_hint="")),
            field("device", "Device", "", placeholder="default", list="devices"),
            field("budget", "Search for", "60s", placeholder="60s, 2m, 1h"), class_="three"),
        tag("datalist", id="devices"),
        tag("div", id="verdict", role="status", class_="verdict"),
        tag("div", tag("button", "Tune", disabled=True), class_="actions"),
        tag("noscript", tag("p", "This form needs scripts; `autotune tune` in a terminal does not.")),
        id="tune", data_check="/dashboard/check", novalidate=True,
    )  # fmt: skip
    return panel("Tune a convolution", form)


def _job(job: Job, now: float) -> Html:
    total, done = job.total_keys, job.done_keys
    share = 1.0 if job.state is JobState.DONE else (done + fraction(job.progress)) / max(total, 1)
    name = headline(job.keys[0].shape) if total == 1 else f"{total} convolutions"
    full = str(job.keys[0]) if total == 1 else _where(job.keys)
    bar = tag("progress", f"{share:.0%}", max=1, value=f"{share:.3f}", aria_label=f"{name}: {share:.0%}")
    return tag(
        "li",
        tag("div", tag("h3", name), state_mark(str(job.state)), class_="job-head"),
        tag("p", full, class_="sub"),
        bar if not job.state.ended else None,
        tag("p", _said(job, now), class_="said"),
        _errors(job),
        tag("div", _actions(job), class_="actions"),
        id=f"job-{job.id}",
        class_="job",
    )


def _where(keys: Sequence[ConvKey]) -> str:
    devices = sorted({key.device.device for key in keys})
    return f"on {', '.join(devices)}"


def _said(job: Job, now: float) -> list[Html]:
    """How far it is, what it found, how long it still takes; or how it ended."""
    said: list[Any] = []
    progress = job.progress
    if job.state is JobState.RUNNING:
        if job.total_keys > 1:
            said.append(f"{min(job.done_keys + 1, job.total_keys)} of {job.total_keys}: {progress.get('key', '')}")
        if progress.get("waiting_for"):
            said.append(str(progress["waiting_for"]))
        if progress.get("trials"):
            trials, failed = progress["trials"], progress.get("failed")
            said.append(f"{trials} candidate{'' if trials == 1 else 's'}{f', {failed} failed' if failed else ''}")
        best, ratio = progress.get("best"), progress.get("ratio")
        if isinstance(best, dict) and isinstance(ratio, int | float):
            said.append(join(["best ", strategy_mark(str(best.get("strategy"))), f" at {ratio:.2f} of direct"]))
        said.append("final rounds" if progress.get("phase") == "final" else _left(job))
    elif job.state is JobState.QUEUED:
        said += [str(progress.get("waiting_for") or "waits for its turn"), _left(job)]
    else:
        took = (job.ended_at or now) - (job.started_at or job.ended_at or now)
        said += [f"ended {_ago(now - (job.ended_at or now))}", f"took {span(took)}"]
    return [tag("span", part) for part in said if part]


def _left(job: Job) -> str:
    left_s = job_time_left_s(job)
    return "" if left_s is None else f"about {span(left_s)} left"


def _ago(seconds: float) -> str:
    said = age(seconds)
    return "just now" if said == "now" else f"{said} ago"


def _errors(job: Job) -> Html | None:
    """Each reason on a line of its own; what to do about it are the actions below."""
    failures = [str(reason) for reason in job.progress.get("failures", [])]
    reasons = failures or ([job.error] if job.error else [])
    if not reasons:
        return None
    return tag("ul", [tag("li", shorten(reason, 300)) for reason in reasons[:MAX_NAMED]], class_="errors")


def _actions(job: Job) -> list[Html]:
    actions = []
    if not job.state.ended:
        actions.append(
            tag("button", "Cancel", type="button", class_="quiet", data_delete=f"/jobs/{job.id}",
                id=f"cancel-{job.id}", aria_label=f"Cancel {job.keys[0]}")
        )  # fmt: skip
    elif job.state is JobState.DONE and job.total_keys == 1:
        actions.append(page_link("See the winner", shape_href(job.keys[0]), id=f"winner-{job.id}"))
    elif job.state is not JobState.DONE:
        actions.append(tag("button", "Try again", type="button", class_="quiet", data_post=f"/jobs/{job.id}/retry",
                           id=f"retry-{job.id}", aria_label=f"Try again: {job.keys[0]}"))  # fmt: skip
        if job.total_keys == 1:
            actions.append(page_link("Change it", again_href(job.keys[0], job), id=f"again-{job.id}"))
    if job.total_keys > 1:
        named = [tag("li", page_link(str(key), shape_href(key))) for key in job.keys[:MAX_NAMED]]
        more = job.total_keys - len(named)
        rest = tag("li", f"and {more} more") if more else None
        actions.append(tag("details", tag("summary", "Its convolutions"), tag("ul", named, rest), id=f"keys-{job.id}"))
    actions.append(tag("a", "JSON", href=f"/jobs/{job.id}", id=f"json-{job.id}"))
    return actions


def again_href(key: ConvKey, job: Job | None = None) -> str:
    """The form, filled in with this convolution."""
    shape = key.shape
    flat = [side for pad in reversed(shape.padding) for side in pad]
    values = {
        "input": "x".join(map(str, shape.input_shape)), "weight": "x".join(map(str, shape.weight_shape)),
        "padding": _numbers(flat), "stride": _numbers(shape.stride), "dilation": _numbers(shape.dilation),
        "groups": str(shape.groups), "dtype": shape.dtype, "device": key.device.device,
    }  # fmt: skip
    if job is not None and job.budget.seconds is not None:
        values["budget"] = f"{job.budget.seconds:g}s"
    return f"/tuning?{urlencode(values)}"


def _numbers(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ",".join(map(str, values))
