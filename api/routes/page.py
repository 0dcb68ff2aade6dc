"""`/`: the first page, and its style sheet."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import HTMLResponse, Response

from api.page import PAGE_SIZE, render
from api.service import Service, get_service

STYLE = Path(__file__).parent.parent / "static" / "page.css"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
def first_page(
    device: Annotated[str, Query(max_length=64)] = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    service: Service = Depends(get_service),
) -> HTMLResponse:
    """The winners, and the jobs that look for more."""
    found = service.store.winners(device=device.upper() or None, limit=PAGE_SIZE + 1, offset=(page - 1) * PAGE_SIZE)
    jobs = [service.jobs.explained(job) for job in service.store.jobs(limit=20)]
    return HTMLResponse(render(found, jobs, device=device.upper(), page=page), headers=HEADERS)


@router.get("/static/page.css")
def style() -> Response:
    """Served from the package: the page needs no network."""
    return Response(_style(), media_type="text/css", headers={"X-Content-Type-Options": "nosniff"})


@cache
def _style() -> str:
    return STYLE.read_text(encoding="utf-8")
