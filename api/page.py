"""The first page as HTML: winners with their ratio drawn, jobs with their progress. No script."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape
from urllib.parse import urlencode

from api.units import duration, fraction, lowering, ratio_text
from autotune.job import Job, JobState
from autotune.winner import Winner

PAGE_SIZE = 200
REFRESH_S = 3
BAR_WIDTH, BAR_HEIGHT = 160, 14
WIDEST_RATIO = 1.25
"""The right end of the drawn bar. The better default stands at 1."""

EXAMPLE = "autotune tune 1x64x56x56 64x64x3x3 --padding 1"


def render(
    winners: Sequence[tuple[int, Winner]],
    jobs: Sequence[Job],
    *,
    device: str = "",
    page: int = 1,
    now: float | None = None,
) -> str:
    """The whole document. `winners` may hold one more than PAGE_SIZE: then there is a next page."""
    shown, more = winners[:PAGE_SIZE], len(winners) > PAGE_SIZE
    active = [job for job in jobs if not job.state.ended]
    refresh = f'<meta http-equiv="refresh" content="{REFRESH_S}">' if active else ""
    parts = [
        _jobs(active or jobs[:3]),
        _winners(shown, now or time.time()) if shown else _nothing(device, page, active),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>autotune: winners</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">{refresh}
<link rel="stylesheet" href="/static/page.css"></head>
<body><header><h1>autotune</h1><p>The fastest verified lowering of each convolution, per device.</p>
{_filter(device)}</header>
<main>{"".join(parts)}{_pages(device, page, more)}</main>
<footer><a href="/winners">winners as JSON</a> <a href="/jobs">jobs</a> <a href="/devices">devices</a>
<a href="/export">export</a> <a href="/openapi.json">HTTP interface</a></footer></body></html>
"""


def _filter(device: str) -> str:
    return (
        '<form method="get" action="/" role="search"><label>Device <input name="device" maxlength="64" size="10" '
        f'placeholder="all" value="{escape(device)}"></label> <button>Show</button></form>'
    )


def _nothing(device: str, page: int, active: Sequence[Job]) -> str:
    if page > 1:
        back = f'<p><a href="/?{_query(device, 1)}">First page</a></p>'
        return f'<section class="empty"><h2>No more winners</h2>{back}</section>'
    if active:
        soon = "<p>The first appears here when its search ends.</p>"
        return f'<section class="empty"><h2>No winners yet</h2>{soon}</section>'
    where = f" on {escape(device)}" if device else ""
    return f"""<section class="empty"><h2>No winners{where} yet</h2>
<p>Tune a first convolution, its input and weight written as tinygrad prints shapes:</p>
<pre><code>{escape(EXAMPLE)}</code></pre>
<p>then use it, with no change to the model:</p>
<pre><code>import autotune
autotune.install("http://127.0.0.1:8000")  # this service's address</code></pre></section>"""


def _winners(winners: Sequence[tuple[int, Winner]], now: float) -> str:
    rows = "".join(_row(winner_id, winner, now) for winner_id, winner in winners)
    return f"""<section><h2>Winners</h2><div class="scroll" tabindex="0" role="region" aria-label="Winners"><table>
<thead><tr><th scope="col">Convolution (input, weight)</th><th scope="col">Device</th>
<th scope="col" class="n">Time</th><th scope="col" class="n">Better default</th>
<th scope="col">Ratio, 95% interval</th><th scope="col" class="n">Error</th><th scope="col">State</th>
<th scope="col" class="n">Age</th></tr></thead><tbody>{rows}</tbody></table></div></section>"""


def _row(winner_id: int, winner: Winner, now: float) -> str:
    error = "" if winner.error is None else f"{winner.error:.1e}"
    policy = winner.key.policy
    promised = [name for name in ("allow_tf32", "frozen_weights") if getattr(policy, name)]
    notes = [f"{name}={value}" for name, value in winner.key.device.flags] + promised
    note = f" <small>{escape(', '.join(notes))}</small>" if notes else ""
    name = escape(str(winner.key.shape))
    return f"""<tr class="winner"><th scope="row"><a href="/winners/{winner_id}">{name}</a>{note}</th>
<td>{escape(winner.key.device.device)}</td>
<td class="n">{duration(winner.time_s.median)}</td>
<td class="n">{duration(winner.default_time_s.median)} <small>{escape(winner.default.strategy)}</small></td>
<td>{_bar(winner)}</td><td class="n">{error}</td>
<td><span class="state {escape(str(winner.state))}">{escape(str(winner.state))}</span></td>
<td class="n">{_age(now - winner.decided_at)}</td></tr>
<tr class="lowering"><td colspan="8"><code>{escape(lowering(winner.candidate))}</code></td></tr>"""


def _bar(winner: Winner) -> str:
    """The ratio as a bar, its interval as a whisker, the better default as a line at 1."""
    ratio = winner.ratio
    text = ratio_text(ratio)
    if not all(math.isfinite(value) for value in (ratio.median, ratio.low, ratio.high)):
        return escape(text)
    middle = BAR_HEIGHT / 2
    kind = "faster" if ratio.high < 1 else "same"
    return (
        f'<svg class="bar" width="{BAR_WIDTH}" height="{BAR_HEIGHT}" role="img" aria-label="{escape(text)}">'
        f'<rect class="{kind}" x="0" y="3" width="{_x(ratio.median)}" height="{BAR_HEIGHT - 6}" rx="2"/>'
        f'<line class="whisker" x1="{_x(ratio.low)}" x2="{_x(ratio.high)}" y1="{middle}" y2="{middle}"/>'
        f'<line class="default" x1="{_x(1)}" x2="{_x(1)}" y1="0" y2="{BAR_HEIGHT}"/></svg> '
        f"<span>{escape(text)}</span>"
    )


def _x(ratio: float) -> str:
    return f"{max(0.0, min(ratio, WIDEST_RATIO)) / WIDEST_RATIO * BAR_WIDTH:.1f}"


def _jobs(jobs: Sequence[Job]) -> str:
    if not jobs:
        return ""
    items = "".join(_job(job) for job in jobs)
    title = "Tuning now" if any(not job.state.ended for job in jobs) else "Latest jobs"
    return f'<section><h2>{title}</h2><ul class="jobs">{items}</ul></section>'


def _job(job: Job) -> str:
    total = len(job.keys)
    what = str(job.keys[0]) if total == 1 else f"{total} shapes"
    said = job.error or str(job.progress.get("waiting_for", ""))
    if not said and total > 1 and job.state is JobState.RUNNING:
        said = str(job.progress.get("key", ""))
    share = 1.0 if job.state is JobState.DONE else (job.done_keys + fraction(job.progress)) / max(total, 1)
    return (
        f'<li><a href="/jobs/{escape(job.id)}">{escape(what)}</a> '
        f'<progress max="1" value="{share:.3f}">{share:.0%}</progress> '
        f'<span class="state {escape(str(job.state))}">{escape(str(job.state))}</span> '
        f"<small>{job.done_keys} of {total} {escape(said[:300])}</small></li>"
    )


def _pages(device: str, page: int, more: bool) -> str:
    links = []
    if page > 1:
        links.append(f'<a rel="prev" href="/?{_query(device, page - 1)}">Newer</a>')
    if more:
        links.append(f'<a rel="next" href="/?{_query(device, page + 1)}">Older</a>')
    return f'<nav aria-label="Pages">{" ".join(links)}</nav>' if links else ""


def _query(device: str, page: int) -> str:
    return escape(urlencode({"device": device, "page": page} if device else {"page": page}))


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"
