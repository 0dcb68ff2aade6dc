"""The dashboard's pages, and what their scripts ask for. Not part of the HTTP interface for programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from api.dashboard.check import check
from api.dashboard.compare import SIDES, compare_page
from api.dashboard.jobs import job_list, jobs_page
from api.dashboard.kernels import explanation_part
from api.dashboard.map import MAX_HEAT, MIN_HEAT, Relative, map_page, relative_times
from api.dashboard.places import place_id, places
from api.dashboard.query import Numbered, WinnersQuery
from api.dashboard.shape import importance_part, shape_page
from api.dashboard.winners import winners_page
from api.jobs import JobRunner
from api.problem import Problem, ProblemError
from api.routes.kernels import explained
from api.routes.winners import WinnerId, find_winner
from api.service import Service, get_service
from api.studies import parameter_importance
from api.studies_link import running_at
from autotune.job import Job
from autotune.space import Space
from autotune.winner import Winner
from db import DatabaseError, SqlStore

STATIC = Path(__file__).parent.parent / "static"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SHOWN_JOBS = 20
LOOK_S = 0.4
"""How often running jobs are looked at; what a person can follow."""
HEARTBEAT_S = 10.0

router = APIRouter(include_in_schema=False)
Digest = Annotated[str, PathParameter(max_length=64)]


class Revalidated(StaticFiles):
    """Files of which a browser asks each time whether they are still the same: scripts of the last release do not fit
    the pages of this one."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """As Starlette's."""
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def static_files() -> StaticFiles:
    """Style sheets, scripts and the chart library, from the package: the dashboard needs no network."""
    return Revalidated(directory=STATIC)


@router.get("/")
def winners(request: Request, service: Service = Depends(get_service)) -> HTMLResponse:
    """Every shape's winner."""
    query, jobs = WinnersQuery.of(request.query_params), service.store.listed_jobs(limit=SHOWN_JOBS)
    found = _winners(service)
    page = winners_page(found, jobs, query, address=_address(request), now=time.time(), stale=_stale(service, found))
    return _page(page)


@router.get("/tuning")
def tuning(request: Request, service: Service = Depends(get_service)) -> HTMLResponse:
    """Jobs, and the form for another one."""
    given = {name: value[:100] for name, value in request.query_params.items()}
    return _page(jobs_page(_jobs(service), given, now=time.time()))


@router.get("/map")
def winners_map(request: Request, service: Service = Depends(get_service)) -> HTMLResponse:
    """Which strategy wins where."""
    found = [winner for _, winner in _winners(service)]
    known = places(found)
    asked = request.query_params.get("place", "")
    place = asked if asked in known else ""
    shown = [place] if place else list(known)
    each = max(MIN_HEAT, MAX_HEAT // max(1, len(shown)))
    heat = {name: _heat(service, [w for w in found if place_id(w.key.device) == name][:each]) for name in shown}
    return _page(map_page(found, heat, place=place))


def _heat(service: Service, winners: list[Winner]) -> list[tuple[Winner, Relative]]:
    rows = [(winner, relative_times(service.store.measurements(winner.key))) for winner in winners]
    return [row for row in rows if row[1]]


@router.get("/compare")
def compare(request: Request, service: Service = Depends(get_service)) -> HTMLResponse:
    """Two devices or versions side by side."""
    sides = {name: request.query_params.get(name, "")[:64] for name in SIDES}
    return _page(compare_page([winner for _, winner in _winners(service)], a=sides["a"], b=sides["b"]))


@router.get("/dashboard/check")
def check_fields(request: Request, service: Service = Depends(get_service)) -> JSONResponse:
    """What the form's fields would tune, or what is wrong with them."""
    return JSONResponse(
        check(dict(request.query_params), service.remembered, service.store, service.settings), headers=HEADERS
    )


@router.get("/dashboard/events")
async def events(request: Request, service: Service = Depends(get_service)) -> StreamingResponse:
    """Server-sent events: the list of jobs as HTML whenever it changes."""
    headers = {**HEADERS, "X-Accel-Buffering": "no"}
    return service.streams.begin(request, _stream(service, request), headers=headers)


@router.get("/shape/{digest}", responses={404: {"model": Problem}})
def shape(digest: Digest, request: Request, service: Service = Depends(get_service)) -> HTMLResponse:
    """One convolution on one device."""
    store, everything = service.store, _winners(service)
    current = store.current_winner(digest)
    key = current[1].key if current else store.key(digest)
    if key is None:
        raise ProblemError(404, f"no convolution {digest!r} here: / lists those that there are")
    computation = key.shape.canonical()
    elsewhere = [w for _, w in everything if w.key.digest != digest and w.key.shape.canonical() == computation]
    return _page(
        shape_page(
            key, store.history(key), store.measurements(key), elsewhere, current=current[0] if current else None,
            address=_address(request), now=time.time(), stale=_stale(service, [current] if current else []),
        )
    )  # fmt: skip


@router.get("/dashboard/importance/{digest}")
def importance(digest: Digest, request: Request, service: Service = Depends(get_service)) -> HTMLResponse:
    """Which parameters of a strategy matter, as a part of the page of one shape."""
    winner = _winner_of(service, digest)
    strategy = request.url.query[:100]
    shares = parameter_importance(Space.of(winner.key), service.store.measurements(winner.key), strategy)
    return _page(importance_part(shares, strategy, running_at(str(service.store))))


@router.post("/dashboard/kernels/{winner_id}")
def kernels(winner_id: WinnerId, service: Service = Depends(get_service)) -> HTMLResponse:
    """A winner's kernels against the floor, with their source, as a part of the page of one shape. Costs the device."""
    return _page(explanation_part(explained(service, find_winner(service, winner_id))))


def _jobs(service: Service) -> list[Job]:
    return [service.jobs.explained(job) for job in service.store.listed_jobs(limit=SHOWN_JOBS)]


def shown_jobs(store: SqlStore, runner: JobRunner) -> str:
    """The list of jobs as HTML, for every page that follows it."""
    jobs = [runner.explained(job) for job in store.listed_jobs(limit=SHOWN_JOBS)]
    return job_list(jobs, now=time.time())


def _winners(service: Service) -> list[Numbered]:
    return service.known.shown(service.store)


def _stale(service: Service, winners: Sequence[Numbered]) -> frozenset[str]:
    return service.present.stale((winner for _, winner in winners), service.remembered)


def _winner_of(service: Service, digest: str) -> Winner:
    found = service.store.current_winner(digest)
    if found is None:
        raise ProblemError(404, f"no winner of {digest!r} here: / lists those that there are")
    return found[1]


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/")


async def _stream(service: Service, request: Request) -> AsyncIterator[str]:
    seen, quiet_s = "", 0.0
    while not service.stopping.is_set():
        with contextlib.suppress(DatabaseError):  # locked for a while: the stream outlasts it
            if not await service.authority.still_holds(request):
                return  # the next request is refused, and says so
            html = await service.shown_jobs.get()
            if html != seen:
                seen, quiet_s = html, 0.0
                yield _event("jobs", html)
        await asyncio.sleep(LOOK_S)
        quiet_s += LOOK_S
        if quiet_s >= HEARTBEAT_S:
            quiet_s = 0.0
            yield ": still here\n\n"


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _page(html: str) -> HTMLResponse:
    return HTMLResponse(html, headers=HEADERS)
