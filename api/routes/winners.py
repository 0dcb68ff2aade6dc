"""`/winners`: what is known, and what a person decides about it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query

from api.bodies import MAX_INT, StateBody
from api.documents import detailed_document, winner_document
from api.problem import Problem, ProblemError
from api.service import Service, get_service
from api.strict_json import StrictRoute
from autotune.winner import Winner, WinnerState

PAGE = 1000

router = APIRouter(route_class=StrictRoute, tags=["winners"])
WinnerId = Annotated[int, Path(ge=1, le=MAX_INT)]
MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such winner"}}


@router.get("/winners")
def winners(
    device: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_INT)] = 0,
    service: Service = Depends(get_service),
) -> dict[str, Any]:
    """Current winners, latest first. `next` is the offset of the following page, null on the last one."""
    found = service.store.winners(device=device.upper() if device else None, limit=limit + 1, offset=offset)
    documents = [winner_document(winner_id, winner) for winner_id, winner in found[:limit]]
    return {"winners": documents, "next": offset + limit if len(found) > limit else None}


@router.get("/winners/{winner_id}", responses=MISSING)
def winner(winner_id: WinnerId, service: Service = Depends(get_service)) -> dict[str, Any]:
    """One winner with every measurement behind it."""
    found = find_winner(service, winner_id)
    return detailed_document(winner_id, found, service.store.measurements(found.key))


@router.patch("/winners/{winner_id}", responses={**MISSING, 422: {"model": Problem}})
def set_state(winner_id: WinnerId, body: StateBody, service: Service = Depends(get_service)) -> dict[str, Any]:
    """Pin a winner (tuning no longer replaces it), revoke it (nobody applies it), or take either back."""
    try:
        return winner_document(winner_id, service.store.set_state(winner_id, WinnerState(body.state)))
    except LookupError:
        raise _missing(winner_id) from None


def find_winner(service: Service, winner_id: int) -> Winner:
    """The winner of an id; raises the 404."""
    found = service.store.winner_by_id(winner_id)
    if found is None:
        raise _missing(winner_id)
    return found


def _missing(winner_id: int) -> ProblemError:
    return ProblemError(404, f"no winner {winner_id}: GET /winners lists those that there are")
