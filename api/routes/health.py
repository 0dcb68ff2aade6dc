"""Whether the service lives, whether it can work, and on what."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.authority import PRESENTED
from api.devices import UnknownDeviceError
from api.problem import Problem, ProblemError
from api.release import release
from api.service import Service, get_service
from db import Token

METRICS_TYPE = CONTENT_TYPE_LATEST.partition(";")[0]
RUNNER_ENDED = "the job runner has ended: restart the service, its queued jobs go on"
router = APIRouter(tags=["health"])


@router.get("/healthz", responses={503: {"model": Problem}})
async def healthz(request: Request) -> dict[str, Any]:
    """The process answers, and its job runner lives, without which only a restart helps. Touches nothing else, so that
    a slow disk does not get it restarted."""
    if not get_service(request).jobs.running:  # not as a dependency, which would wait for a thread
        raise ProblemError(503, RUNNER_ENDED)
    return {"status": "ok", "version": release()}


@router.get("/readyz", responses={503: {"model": Problem}})
async def readyz(request: Request) -> dict[str, Any]:
    """The database takes writes and the job runner works, each lane of it."""
    service = get_service(request)
    active = await service.readiness.expect_writable()
    if not service.jobs.running:
        raise ProblemError(503, RUNNER_ENDED)
    if faults := service.jobs.faults():
        raise ProblemError(503, f"the job runner does not work as it should: {'; '.join(faults)}")
    return {"status": "ready", **active}


@router.get("/metrics", response_class=Response, responses={200: {"content": {METRICS_TYPE: {}}}})
def metrics(service: Service = Depends(get_service)) -> Response:
    """Counts for Prometheus: requests, their times, rows, jobs, and the process itself."""
    return Response(generate_latest(service.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/token")
def token(request: Request) -> dict[str, Any]:
    """What the token of this request is good for. `scope` is null without one: on loopback none is needed."""
    found: Token | None = request.scope.get(PRESENTED)
    if found is None:
        return {"name": None, "scope": None, "expires_at": None}
    return {"name": found.name, "scope": str(found.scope), "expires_at": found.expires_at}


@router.get("/devices", responses={503: {"model": Problem}})
def devices(service: Service = Depends(get_service)) -> dict[str, Any]:
    """The devices of this machine, the default one first, as they stand in keys."""
    found = []
    try:
        names = service.remembered.names()
    except UnknownDeviceError as error:
        raise ProblemError(503, str(error)) from None
    for name in names:
        try:
            found.append({"device": name, "spec": service.remembered.describe(name).to_json()})
        except UnknownDeviceError as error:
            found.append({"device": name, "error": str(error)})
    return {"default": names[0] if names else None, "devices": found}
