"""Errors as RFC 9457 problem documents: what was expected, what came, what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from api.devices import UnknownDeviceError
from api.text import one_line, printable
from autotune.bundle import BundleError
from autotune.job import BudgetError, QueueFullError
from db import DatabaseError
from strategies.candidate import CandidateFormatError
from strategies.key import KeyFormatError
from strategies.shape import ShapeError

MEDIA_TYPE = "application/problem+json"
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
MAX_FOUND = 80
NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)

log = logging.getLogger("autotune.api")


class Problem(BaseModel):
    """An RFC 9457 problem document. `detail` is one line for a person; extra members are for programs."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str = ""


class ProblemError(Exception):
    """Raised by a route to answer with a problem document."""

    def __init__(self, status: int, detail: str, *, retry_after_s: int = 0, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after_s, self.members = status, detail, retry_after_s, members


def problem(status: int, detail: str, *, instance: str = "", retry_after_s: int = 0, **members: Any) -> JSONResponse:
    """The response itself; `retry_after_s`, unless it is 0, says when to ask again."""
    title = HTTPStatus(status).phrase
    content = {"type": "about:blank", "title": title, "status": status, "detail": one_line(detail)}
    if instance:
        content["instance"] = printable(instance)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    return JSONResponse({**content, **members}, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def install_handlers(app: FastAPI) -> None:
    """Turn everything that can go wrong in a route into a problem document; bugs are left to `Observer`."""

    def answer(status: int) -> Callable[[Request, Exception], Response]:
        def handler(request: Request, error: Exception) -> Response:
            return problem(status, str(error), instance=request.url.path)

        return handler

    for refused in (ShapeError, KeyFormatError, CandidateFormatError, BudgetError, UnknownDeviceError, BundleError):
        app.add_exception_handler(refused, answer(422))
    app.add_exception_handler(QueueFullError, _on_queue_full)
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(DatabaseError, _on_database)


def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    path, again_s = request.url.path, error.retry_after_s
    return problem(error.status, error.detail, instance=path, retry_after_s=again_s, **error.members)


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in NO_BODY:
        return Response(status_code=error.status_code, headers=error.headers)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"nothing is at {request.url.path}: /openapi.json lists what there is"
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
        detail = f"{request.url.path} does not take {request.method}: use {headers['Allow']}"
    response = problem(error.status_code, detail, instance=request.url.path)
    response.headers.update(headers)
    return response


def _methods(request: Request) -> list[str]:
    """All that the path takes: the framework names those of its first route only, and of static files none."""
    routes = request.app.routes
    if isinstance(request.scope.get("endpoint"), StaticFiles):
        return ["GET", "HEAD"]
    return [
        method for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]  # fmt: skip


def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    first = errors[0]
    if first.get("type") == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return problem(400, f"expected a JSON body: {reason}; send application/json", instance=request.url.path)
    members = [{"pointer": _pointer(item["loc"]), "detail": one_line(_explain(item))} for item in errors[:20]]
    return problem(422, _explain(first), instance=request.url.path, errors=members)


def _on_queue_full(request: Request, error: Exception) -> Response:
    return problem(429, str(error), instance=request.url.path, retry_after_s=60)


def _on_database(request: Request, error: Exception) -> Response:
    log.error("database: %s", error)
    detail = f"{error}; nothing acknowledged was lost, try again"
    return problem(503, detail, instance=request.url.path, retry_after_s=5)


def _explain(item: dict[str, Any]) -> str:
    where = _pointer(item["loc"]) or "the body"
    expected = str(item["msg"]).replace("dictionary or object to extract fields from", "object")
    expected = expected.removeprefix("Value error, ").replace("Input should be", "expected")
    if item["type"] == "missing":
        return f"{where} is missing: add it (see /openapi.json for an example)"
    if item["type"] == "extra_forbidden":
        return f"{where} is not known here: leave it out, or see /openapi.json for how it is spelt"
    return f"{where}: {expected[:1].lower()}{expected[1:]}, found {_found(item.get('input'))}"


def _pointer(loc: Sequence[Any]) -> str:
    """`shapes[2].input` from pydantic's location; where it came from and the names of unions are left out."""
    text = ""
    for part in loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not str(part).startswith("|"):
            text += f".{part}" if text else str(part)
    return one_line(text, 120)


def _found(value: Any) -> str:
    if isinstance(value, bytes):
        return "a body that was not sent as application/json"
    return one_line(repr(value), MAX_FOUND)
