"""`/winners/{id}/kernels`: why a winner won, kernel by kernel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.documents import finite
from api.explanations import ExplanationsBusyError
from api.problem import Problem, ProblemError
from api.routes.winners import MISSING, WinnerId, find_winner
from api.service import Service, get_service
from api.strict_json import StrictRoute
from autotune.device_lock import DeviceBusyError
from autotune.explanation import Explanation
from autotune.runner import DeviceUnavailableError, RunStoppedError
from autotune.task import TaskError
from autotune.winner import Winner

router = APIRouter(route_class=StrictRoute, tags=["winners"])
Source = Annotated[bool, Query()]


@router.get("/winners/{winner_id}/kernels", responses=MISSING)
def known_kernels(
    winner_id: WinnerId, source: Source = False, service: Service = Depends(get_service)
) -> dict[str, Any]:
    """Time, operations, bytes and share of the floor of every kernel of the winner and of the default, and the
    runner-up, if somebody has had them timed since the service began; otherwise 404. `source` adds what was compiled.
    """
    explanation = service.explanations.known(find_winner(service, winner_id))
    if explanation is None:
        raise ProblemError(
            404, f"nobody has had winner {winner_id} looked into: POST /winners/{winner_id}/kernels does"
        )
    return _document(winner_id, explanation, source)


@router.post("/winners/{winner_id}/kernels", responses={**MISSING, 409: {"model": Problem}})
def kernels(winner_id: WinnerId, source: Source = False, service: Service = Depends(get_service)) -> dict[str, Any]:
    """As GET, but compiled and timed on this machine when first asked for, some ten seconds; 409 where that cannot be,
    429 where several wait for it."""
    return _document(winner_id, explained(service, find_winner(service, winner_id)), source)


def explained(service: Service, winner: Winner) -> Explanation:
    """Made now if it is not known; raises ProblemError where that cannot be."""
    try:
        return service.explanations.of(service.store, winner)
    except ExplanationsBusyError as error:
        raise ProblemError(429, str(error), retry_after_s=60) from None
    except RunStoppedError:
        raise ProblemError(503, "the service is ending: try again when it is back", retry_after_s=10) from None
    except (TaskError, DeviceUnavailableError, DeviceBusyError) as error:
        raise ProblemError(409, f"{winner.key} cannot be looked into on this machine now: {error}") from None


def _document(winner_id: int, explanation: Explanation, source: bool) -> dict[str, Any]:
    document = explanation.to_json()
    if not source:
        for program in filter(None, (document["winner"], document["default"])):
            for kernel in program["kernels"]:
                kernel["source"] = None
    answer: dict[str, Any] = finite({"id": winner_id, **document})
    return answer
