"""The workers of a fleet."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from api.service import Service, get_service

router = APIRouter(tags=["workers"])


@router.get("/workers")
def workers(service: Service = Depends(get_service)) -> dict[str, Any]:
    """Who measures, who was heard of last first; empty on one machine, which needs none."""
    return {"workers": [worker.to_json() for worker in service.jobs.workers()]}
