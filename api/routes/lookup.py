"""`/lookup`: the winner of a shape, or the nearest shapes that have one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from api.answers import Answer
from api.bodies import LookupBody, LookupQuery
from api.devices import UnknownDeviceError, check_name
from api.documents import winner_document
from api.guesses import guessed, place
from api.keys import body_keys, json_key, parse_flags, query_policy, query_shape
from api.limits import expect_batch
from api.nearest import nearest
from api.problem import MEDIA_TYPE, Problem, ProblemError, problem
from api.service import Service, get_service
from api.strict_json import StrictRoute
from autotune.neighbours import aged
from autotune.store import Store
from autotune.winner import WITHDRAWN_STATES
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.shape import ConvShape, JsonObject

MAX_ELSEWHERE = 100
"""Of the devices of one name that were ever seen, the latest so many are looked at."""
GUESS = re.compile(rb'"state": ?"guess"')
"""In a winner's JSON; no text in it can look like that, as its quotes are escaped."""
FOUND: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class AnsweredRoute(StrictRoute):
    """A route whose answers, that nothing is known among them, are remembered by the query string."""

    def get_route_handler(self) -> Handler:
        """As FastAPI documents for custom routes."""
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            service = get_service(request)
            question = request.scope["query_string"]
            changes = await count_changes(service.store)
            answer = service.answers.get(question, changes)
            if answer is None:
                answer = await _worked_out(handler, request)
                service.answers.keep(question, changes, answer)
            missed = answer.status == HTTPStatus.NOT_FOUND
            service.metrics.looked_up(hits=not missed and not answer.guess, guesses=answer.guess, misses=missed)
            return Response(answer.body, answer.status, media_type=MEDIA_TYPE if missed else "application/json")

        return answered


async def _worked_out(handler: Handler, request: Request) -> Answer:
    """Whatever else is wrong is raised."""
    try:
        response = await handler(request)
    except ProblemError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        response = problem(error.status, error.detail, instance=request.url.path, **error.members)
        return Answer(bytes(response.body), status=response.status_code)
    found = bytes(response.body)
    return Answer(found, guess=GUESS.search(found) is not None)


router = APIRouter(route_class=StrictRoute, tags=["lookup"])
answered = APIRouter(route_class=AnsweredRoute, tags=["lookup"])


@answered.get("/lookup", responses={**FOUND, 404: {"model": Problem}, 422: {"model": Problem}}, response_class=Response)
def lookup(query: Annotated[LookupQuery, Query()], service: Service = Depends(get_service)) -> Response:
    """The winner of one shape, with its state; where nobody tuned it the best guess from its neighbours, state `guess`,
    with its confidence. 404 where nothing is known that is near."""
    shape, policy, flags = query_shape(query), query_policy(query), parse_flags(query.flags)
    try:
        keys = [ConvKey(shape=shape, device=service.remembered.describe(query.device, flags), policy=policy)]
        device = keys[0].device.device
    except UnknownDeviceError:
        # Not a device of this machine, but its winners may have been imported.
        device = check_name(query.device or "")
        seen = service.store.devices(device, MAX_ELSEWHERE)
        if flags is not None:
            wanted = service.remembered.in_force(flags)
            seen = [replace(spec, flags=wanted) for spec in seen]
        keys = _elsewhere(shape, policy, seen)
        if not keys:
            raise
    found = sorted(service.store.lookup([key.digest for key in keys]).values(), key=lambda w: w.decided_at)
    if not found:
        with place():
            known = service.known.latest(service.store)
            if (made := guessed(service.store, keys, [winner for _, winner in known])) is not None:
                return _json(json.dumps(winner_document(None, made)))
            raise _miss(service, keys, nearest(shape, policy, device, known), f"{shape} on {device}")
    return _json(json.dumps(winner_document(None, aged(found[-1], keys[0]) if len(keys) == 1 else found[-1])))


@router.post("/lookup", responses={**FOUND, 422: {"model": Problem}}, response_class=Response)
def lookup_many(body: LookupBody, service: Service = Depends(get_service)) -> Response:
    """Many at once: `winners` by digest, those not known left out; `digests` in the order of keys, then shapes."""
    expect_batch(len(body.keys) + len(body.shapes), service.settings)
    keys = [json_key(data) for data in body.keys] + body_keys(body.shapes, service.remembered)
    digests = [key.digest for key in keys]
    found = service.store.lookup_json(list(dict.fromkeys(digests)))
    guesses = sum(GUESS.search(text.encode()) is not None for text in found.values())
    service.metrics.looked_up(hits=len(found) - guesses, guesses=guesses, misses=len(set(digests)) - len(found))
    winners = ",".join(f"{json.dumps(digest)}:{text}" for digest, text in found.items())
    return _json(f'{{"winners":{{{winners}}},"digests":{json.dumps(digests)}}}')


def _elsewhere(shape: ConvShape, policy: Policy, seen: Sequence[DeviceSpec]) -> list[ConvKey]:
    """The key on each machine that this shape's device was seen on."""
    keys = [ConvKey(shape=shape, device=spec, policy=policy) for spec in seen]
    return list({key.digest: key for key in keys}.values())


def _miss(service: Service, keys: list[ConvKey], close: list[JsonObject], name: str) -> ProblemError:
    for key in keys:
        withdrawn = service.store.winner(key)
        if withdrawn is not None and withdrawn.state in WITHDRAWN_STATES:
            return ProblemError(
                404, f"the winner of {key} was {withdrawn.state}: PATCH /winners/ID or tune again", nearest=close
            )
    advice = f"the nearest known is {close[0]['name']}" if close else "nothing is known yet"
    return ProblemError(404, f"no winner for {name}: {advice}; POST /tune with this shape to find one", nearest=close)


async def count_changes(store: Store) -> int:
    """`Store.changes`, asked in a thread where it takes a while."""
    return store.changes() if store.reads_at_once else await run_in_threadpool(store.changes)


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
