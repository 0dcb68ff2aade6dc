"""`/export` and `/import`: winners as a versioned, checksummed bundle."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.exchange import all_winners, import_winners
from api.imports import MAX_EXPORTS, MAX_IMPORTS
from api.problem import Problem, ProblemError
from api.service import Service, get_service
from autotune.bundle import dump, load, read_key

IN_MEMORY_BYTES = 1 << 20

router = APIRouter(tags=["bundle"])
BUNDLE = {"application/json": {"schema": {"type": "object", "required": ["format", "version", "winners", "sha256"]}}}


@router.get("/export", responses={200: {"content": BUNDLE}}, response_class=Response)
def export(
    device: Annotated[str | None, Query(max_length=64)] = None, service: Service = Depends(get_service)
) -> Response:
    """Every current winner, revoked ones included: a file for `autotune import`, or a source for the hook. All of them
    are read for it: where others are being written, 429."""
    if not service.exports.acquire(blocking=False):
        raise ProblemError(429, f"{MAX_EXPORTS} exports are being written already: try again", retry_after_s=10)
    try:
        found = all_winners(service.store, device=device.upper() if device else None)
        content = dump(winner for _, winner in found)
    finally:
        service.exports.release()
    headers = {"Content-Disposition": 'attachment; filename="autotune-winners.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.post(
    "/import",
    responses={413: {"model": Problem}, 415: {"model": Problem}},
    openapi_extra={"requestBody": {"content": BUNDLE, "required": True}},
)
async def import_bundle(request: Request, service: Service = Depends(get_service)) -> dict[str, Any]:
    """Merge a bundle. All of it is read before any of it is kept; one is read at a time, and few may wait."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProblemError(415, f"expected a bundle as application/json, found {kind or 'no content type'}: send that")
    if service.imports.full:
        raise ProblemError(429, f"{MAX_IMPORTS} bundles are on their way already: wait for them", retry_after_s=60)
    with service.imports:
        async with _received(request) as file, service.imports.turn:
            return await run_in_threadpool(_merge, service, file)


def _merge(service: Service, file: IO[bytes]) -> dict[str, Any]:
    signed_with = service.settings.bundle_key
    key = read_key(signed_with) if signed_with else None
    return import_winners(service.store, load(file.read(), key=key))


@asynccontextmanager
async def _received(request: Request) -> AsyncIterator[IO[bytes]]:
    """The body, in memory while it is small, else in a file; how large it may be is the guard's to say."""
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES) as file:
        try:
            async for part in request.stream():
                await run_in_threadpool(file.write, part)
        except ClientDisconnect:
            raise ProblemError(408, "expected the whole bundle, found a client that left before") from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            detail = f"expected room for the bundle in {tempfile.gettempdir()}, found none: free some"
            raise ProblemError(503, detail, retry_after_s=60) from None
        file.seek(0)
        yield file
