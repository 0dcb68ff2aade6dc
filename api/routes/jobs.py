"""`POST /tune` and the jobs that it makes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Path, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from api.authority import presented_name
from api.bodies import MAX_INT, TuneBody, TuneKeys
from api.documents import job_document, job_summary
from api.guesses import keep_guesses
from api.keys import body_keys, expect_few_devices, json_key
from api.limits import expect_affordable, expect_batch
from api.problem import Problem, ProblemError
from api.service import Service, get_service
from api.strict_json import StrictRoute
from autotune.job import Job, JobState, Submitter
from db import DatabaseError
from strategies.key import ConvKey

log = logging.getLogger("autotune.jobs")

POLL_S = 0.2
HEARTBEAT_S = 15.0

router = APIRouter(route_class=StrictRoute, tags=["jobs"])
JobId = Annotated[str, Path(max_length=64)]
MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such job"}}


@router.post("/tune", status_code=202, responses={422: {"model": Problem}})
def tune(
    body: TuneBody, request: Request, response: Response, later: BackgroundTasks,
    service: Service = Depends(get_service),
) -> dict[str, Any]:  # fmt: skip
    """Queue a job. The same keys already queued or running: that job. Until then lookups have a guess, where
    neighbouring shapes are known."""
    budget, terms = body.parsed(), body.terms(service.store.now())
    expect_batch(len(body.keys) if isinstance(body, TuneKeys) else len(body.shape_bodies()), service.settings)
    if isinstance(body, TuneKeys):
        keys = [json_key(key) for key in body.keys]
        expect_few_devices(len({key.device for key in keys}))
    else:
        keys = body_keys(body.shape_bodies(), service.devices)
    expect_affordable([key.shape for key in keys], service.settings)
    job = service.store.submit(keys, budget, terms, submitter=_submitter(request, service))
    later.add_task(_keep_guesses, service, keys)
    return _accepted(service, job, response)


@router.post("/jobs/{job_id}/retry", status_code=202, responses={**MISSING, 409: {"model": Problem}})
def retry(
    job_id: JobId, request: Request, response: Response, service: Service = Depends(get_service)
) -> dict[str, Any]:
    """A new job for what a failed or cancelled one did not get done, with the same budget and priority."""
    former = _find(service, job_id)
    keys = [key for key, state in zip(former.keys, former.states, strict=True) if state is not JobState.DONE]
    if not former.state.ended or not keys:
        raise ProblemError(409, f"job {job_id!r} is {former.state}: only a failed or cancelled one can be retried")
    expect_affordable([key.shape for key in keys], service.settings)
    terms = replace(former.terms, deadline=None)
    submitter = _submitter(request, service)
    job = service.store.submit(keys, former.budget, terms, retry_of=former.id, submitter=submitter)
    return _accepted(service, job, response)


@router.get("/jobs")
def jobs(
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_INT)] = 0,
    service: Service = Depends(get_service),
) -> dict[str, Any]:
    """Jobs, latest first, without their keys; those that have ended are the history."""
    found = service.store.listed_jobs(limit=limit, offset=offset, state=state)
    return {"jobs": [job_summary(service.jobs.explained(job)) for job in found]}


@router.get("/jobs/{job_id}", responses=MISSING)
def job(job_id: JobId, service: Service = Depends(get_service)) -> dict[str, Any]:
    """One job, with what the search last said of itself."""
    return job_document(_find(service, job_id))


@router.delete("/jobs/{job_id}", responses=MISSING)
def cancel(job_id: JobId, service: Service = Depends(get_service)) -> dict[str, Any]:
    """Cancel a job. One that has ended stays what it is."""
    _find(service, job_id)
    return job_document(service.jobs.cancel(job_id))


@router.get(
    "/jobs/{job_id}/events",
    responses={**MISSING, 200: {"content": {"text/event-stream": {}}}, 204: {"description": "Ended, and seen"}},
    response_class=StreamingResponse,
)
async def events(
    job_id: JobId, request: Request, service: Service = Depends(get_service),
    last_event_id: Annotated[str, Header()] = "",
) -> Response:  # fmt: skip
    """Server-sent events: the job as in `GET /jobs` whenever it changes, `end` with its last state.

    Every event carries everything, so a client that comes back with `Last-Event-ID` misses nothing; the id is a
    digest of the event, and holds over restarts. 204 tells a browser's EventSource not to come back again.
    """
    found = await run_in_threadpool(_listed, service, job_id)
    if found.state.ended and event_id(found) == last_event_id:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return service.streams.begin(request, _stream(service, request, found, last_event_id), headers=headers)


async def _stream(service: Service, request: Request, job: Job, seen: str) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    quiet_s = 0.0
    with service.followed.follow(job.id):
        while not service.stopping.is_set():
            current = event_id(job)
            if current != seen:
                seen, quiet_s = current, 0.0
                name = "end" if job.state.ended else "job"
                yield f"id: {current}\nevent: {name}\ndata: {json.dumps(job_summary(job))}\n\n"
            if job.state.ended:
                return
            await asyncio.sleep(POLL_S)
            quiet_s += POLL_S
            if quiet_s >= HEARTBEAT_S:
                quiet_s = 0.0
                yield ": still here\n\n"
            with contextlib.suppress(DatabaseError):  # locked for a while: the stream outlasts it
                if not await service.authority.still_holds(request):
                    yield 'event: refused\ndata: {"detail": "the token was revoked or has expired"}\n\n'
                    return
                found = await service.followed.look(job)
                if found is None:
                    return
                job = service.jobs.explained(found)


def _keep_guesses(service: Service, keys: Sequence[ConvKey]) -> None:
    """After the answer: whatever is in the way costs guesses alone."""
    try:
        keep_guesses(service.store, keys, [winner for _, winner in service.known.latest(service.store)])
    except DatabaseError as error:
        log.warning("no guesses were kept: %s", error)


def event_id(job: Job) -> str:
    """16 hex digits over what may change about a job."""
    text = json.dumps([str(job.state), job.done_keys, job.progress, job.error, job.started_at, job.ended_at])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find(service: Service, job_id: str) -> Job:
    return _there(service, job_id, service.store.job(job_id))


def _listed(service: Service, job_id: str) -> Job:
    """With its first keys: a stream asks again and again."""
    return _there(service, job_id, service.store.listed_job(job_id))


def _there(service: Service, job_id: str, found: Job | None) -> Job:
    if found is None:
        raise ProblemError(404, f"no job {job_id!r}: GET /jobs lists those that there are")
    return service.jobs.explained(found)


def _submitter(request: Request, service: Service) -> Submitter:
    return Submitter(name=presented_name(request.scope), max_keys=service.settings.max_queued)


def _accepted(service: Service, job: Job, response: Response) -> dict[str, Any]:
    service.jobs.wake()
    response.headers["Location"] = f"/jobs/{job.id}"
    return job_document(service.jobs.explained(job))
