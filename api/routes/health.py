"""Whether the service lives, whether it can work, and on what."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from api.devices import UnknownDeviceError
from api.problem import Problem, ProblemError
from api.service import Service, get_service
from autotune.job import JobState

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, Any]:
    """The process answers. Touches nothing else, so that a slow disk does not get it restarted."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Problem}})
def readyz(service: Service = Depends(get_service)) -> dict[str, Any]:
    """The database answers and the job runner works."""
    active = [job.state for job in service.store.jobs(limit=100) if not job.state.ended]
    if not service.jobs.alive:
        raise ProblemError(503, "the job runner has ended: restart the service, its queued jobs go on")
    return {"status": "ready", "queued": active.count(JobState.QUEUED), "running": active.count(JobState.RUNNING)}


@router.get("/devices", responses={503: {"model": Problem}})
def devices(service: Service = Depends(get_service)) -> dict[str, Any]:
    """The devices of this machine, the default one first, as they stand in keys."""
    found = []
    try:
        names = service.devices.names()
    except UnknownDeviceError as error:
        raise ProblemError(503, str(error)) from None
    for name in names:
        try:
            found.append({"device": name, "spec": service.devices.describe(name).to_json()})
        except UnknownDeviceError as error:
            found.append({"device": name, "error": str(error)})
    return {"default": names[0] if names else None, "devices": found}
