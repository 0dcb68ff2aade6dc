"""`/export` and `/import`: winners as a versioned, checksummed bundle."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.exchange import all_winners, import_winners
from api.problem import Problem, ProblemError
from api.service import Service, get_service
from autotune.bundle import dump, load, read_key

router = APIRouter(tags=["bundle"])
BUNDLE = {"application/json": {"schema": {"type": "object", "required": ["format", "version", "winners", "sha256"]}}}


@router.get("/export", responses={200: {"content": BUNDLE}}, response_class=Response)
def export(
    device: Annotated[str | None, Query(max_length=64)] = None, service: Service = Depends(get_service)
) -> Response:
    """Every current winner, revoked ones included: a file for `autotune import`, or a source for the hook."""
    found = all_winners(service.store, device=device.upper() if device else None)
    headers = {"Content-Disposition": 'attachment; filename="autotune-winners.json"'}
    return Response(dump(winner for _, winner in found), media_type="application/json", headers=headers)


@router.post(
    "/import",
    responses={413: {"model": Problem}, 415: {"model": Problem}},
    openapi_extra={"requestBody": {"content": BUNDLE, "required": True}},
)
async def import_bundle(request: Request, service: Service = Depends(get_service)) -> dict[str, Any]:
    """Merge a bundle. All of it is read before any of it is kept."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProblemError(415, f"expected a bundle as application/json, found {kind or 'no content type'}: send that")
    signed_with = service.settings.bundle_key
    key = read_key(signed_with) if signed_with else None
    winners = await run_in_threadpool(partial(load, await request.body(), key=key))
    return await run_in_threadpool(import_winners, service.store, winners)
