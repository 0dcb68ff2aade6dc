"""Around every request: an id, headers, a log line for what matters, counts for Prometheus, and an end to any bug."""

from __future__ import annotations

import logging
import re
import time
import uuid
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.authority import OPEN
from api.guard import SAFE_METHODS
from api.logs import request_id, without_secrets
from api.metrics import Metrics
from api.problem import problem
from api.protocol import MAX_CONNECTIONS, REFUSED
from api.text import shorten

GIVEN_ID = re.compile(r"[-A-Za-z0-9._]{1,64}")
QUIET = ("/lookup", "/healthz", "/readyz", "/metrics", "/static")
"""Answered many times a second, by programs: counted, and logged where something is wrong."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of every answer that does not say otherwise; pages do."""
TLS_ONLY = (b"strict-transport-security", b"max-age=31536000")
"""Where the request came by https: from then on no other way."""

MAX_PATH = 200
"""Characters of a path in a line of the log: a request may have one of a hundred thousand, with no token at all."""

log = logging.getLogger("autotune.requests")


class Observer:
    """The outermost layer. A request that names a sane X-Request-Id keeps it, others are given one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        request_id.set(name)  # of this task alone: each request has its own
        started = time.perf_counter()
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        answered_s = 0.0

        async def observed(message: Message) -> None:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = message["status"], time.perf_counter() - started
                message = {**message, "headers": _headers(message["headers"], name, scope["scheme"])}
            await send(message)

        try:
            if scope.get("state", {}).get(REFUSED) and scope["path"] not in OPEN:
                detail = f"expected at most {MAX_CONNECTIONS} connections, found more: try again in a moment"
                answer = problem(503, detail, retry_after_s=5)
                answer.headers["Connection"] = "close"  # the next one may find a place
                await answer(scope, receive, observed)
            else:
                await self.app(scope, receive, observed)
        except Exception as error:
            log.exception("%s %r failed", scope["method"], _path(scope))
            if answered_s:
                raise  # amid its answer: the connection must end
            detail = f"a bug in the service ({type(error).__name__}): its log says more"
            await problem(500, detail, instance=scope["path"])(scope, receive, observed)
        finally:
            answered_s = answered_s or time.perf_counter() - started
            self.metrics.count(scope["method"], _route(scope), status, answered_s)
            _log(scope, status, answered_s)


def _headers(given: list[tuple[bytes, bytes]], name: str, scheme: str) -> list[tuple[bytes, bytes]]:
    there = {header for header, _ in given}
    added = [header for header in HEADERS if header[0] not in there]
    if scheme == "https":
        added.append(TLS_ONLY)
    return [*given, *added, (b"x-request-id", name.encode())]


def _route(scope: Scope) -> str:
    """The route's path with its parameters unfilled: few values, whatever is asked for."""
    return getattr(scope.get("route"), "path", "none")


def _log(scope: Scope, status: int, seconds: float) -> None:
    """The path without its query, in which anything may stand."""
    level = _level(scope, status)
    if level and log.isEnabledFor(level):
        client = (scope.get("client") or ("",))[0]
        path = _path(scope)
        fields = {"method": scope["method"], "path": path, "status": status, "client": client}
        fields["seconds"] = round(seconds, 6)
        text = "%s %r from %s: %d after %.1f ms"
        log.log(level, text, scope["method"], path, client, status, seconds * 1e3, extra={"fields": fields})


def _path(scope: Scope) -> str:
    """Its beginning, for the log. Secrets go before it is cut: a part of one is not known as one."""
    return shorten(without_secrets(scope["path"][: 10 * MAX_PATH]), MAX_PATH)


def _level(scope: Scope, status: int) -> int:
    """Changes are worth a line, reads one in a log for machines (`logs.configure`), what is quiet none (0)."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return logging.ERROR
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.MISDIRECTED_REQUEST):
        return logging.WARNING
    if scope["path"].startswith(QUIET) and scope["method"] in (*SAFE_METHODS, "POST"):
        return logging.NOTSET
    return logging.DEBUG if scope["method"] in SAFE_METHODS else logging.INFO
