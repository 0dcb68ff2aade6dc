"""`/lookup`: the winner of a shape, or the nearest shapes that have one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.bodies import LookupBody, LookupQuery
from api.devices import UnknownDeviceError, check_name
from api.documents import finite, winner_document
from api.keys import body_keys, json_key, parse_flags, query_policy, query_shape
from api.nearest import nearest
from api.problem import Problem, ProblemError
from api.service import Service, get_service
from api.strict_json import StrictRoute
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape

KNOWN = 5000

router = APIRouter(route_class=StrictRoute, tags=["lookup"])


@router.get("/lookup", responses={404: {"model": Problem}, 422: {"model": Problem}})
def lookup(query: Annotated[LookupQuery, Query()], service: Service = Depends(get_service)) -> dict[str, Any]:
    """The winner of one shape, with its state."""
    shape, policy, flags = query_shape(query), query_policy(query), parse_flags(query.flags)
    try:
        keys = [ConvKey(shape=shape, device=service.devices.describe(query.device, flags), policy=policy)]
        device = keys[0].device.device
    except UnknownDeviceError:
        # Not a device of this machine, but its winners may have been imported.
        device = check_name(query.device or "")
        known = service.store.winners(device=device, limit=KNOWN)
        if not known:
            raise
        keys = _elsewhere(shape, policy, known)
    found = sorted(service.store.lookup([key.digest for key in keys]).values(), key=lambda w: w.decided_at)
    if not found:
        raise _miss(service, shape, policy, device, keys)
    return winner_document(None, found[-1])


@router.post("/lookup", responses={422: {"model": Problem}})
def lookup_many(body: LookupBody, service: Service = Depends(get_service)) -> dict[str, Any]:
    """Many at once: `winners` by digest, those not known left out; `digests` in the order of keys, then shapes."""
    keys = [json_key(data) for data in body.keys] + body_keys(body.shapes, service.devices)
    digests = [key.digest for key in keys]
    found = service.store.lookup(list(dict.fromkeys(digests)))
    return {"winners": {digest: finite(winner.to_json()) for digest, winner in found.items()}, "digests": digests}


def _elsewhere(shape: ConvShape, policy: Policy, known: list[tuple[int, Winner]]) -> list[ConvKey]:
    """The key on each machine that this shape's device was seen on."""
    devices = {tuple(winner.key.device.to_json().items()).__repr__(): winner.key.device for _, winner in known}
    return [ConvKey(shape=shape, device=device, policy=policy) for device in devices.values()]


def _miss(service: Service, shape: ConvShape, policy: Policy, device: str, keys: list[ConvKey]) -> ProblemError:
    known = service.store.winners(limit=KNOWN)
    close = nearest(shape, policy, device, [item for item in known if item[1].state is not WinnerState.REVOKED])
    for key in keys:
        withdrawn = service.store.winner(key)
        if withdrawn is not None and withdrawn.state is WinnerState.REVOKED:
            return ProblemError(404, f"the winner of {key} was revoked: PATCH /winners/ID or tune again", nearest=close)
    name = f"{shape} on {device}"
    advice = f"the nearest known is {close[0]['name']}" if close else "nothing is known yet"
    return ProblemError(404, f"no winner for {name}: {advice}; POST /tune with this shape to find one", nearest=close)
