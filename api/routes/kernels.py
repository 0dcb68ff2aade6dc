"""`/winners/{id}/kernels`: why a winner won, kernel by kernel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.documents import finite
from api.problem import Problem, ProblemError
from api.routes.winners import MISSING, WinnerId, find_winner
from api.service import Service, get_service
from api.strict_json import StrictRoute
from autotune.device_lock import DeviceBusyError
from autotune.runner import DeviceUnavailableError
from autotune.task import TaskError

router = APIRouter(route_class=StrictRoute, tags=["winners"])


@router.get("/winners/{winner_id}/kernels", responses={**MISSING, 409: {"model": Problem}})
def kernels(
    winner_id: WinnerId, source: Annotated[bool, Query()] = False, service: Service = Depends(get_service)
) -> dict[str, Any]:
    """Time, operations, bytes and share of the floor of every kernel of the winner and of the default, and the
    runner-up. Compiled and timed on this machine when first asked for, some ten seconds; 409 where that cannot be.
    `source` adds what was compiled."""
    winner = find_winner(service, winner_id)
    try:
        explanation = service.explanations.of(service.store, winner)
    except (TaskError, DeviceUnavailableError, DeviceBusyError) as error:
        raise ProblemError(409, f"{winner.key} cannot be looked into on this machine now: {error}") from None
    document = explanation.to_json()
    if not source:
        for program in filter(None, (document["winner"], document["default"])):
            for kernel in program["kernels"]:
                kernel["source"] = None
    answer: dict[str, Any] = finite({"id": winner_id, **document})
    return answer
