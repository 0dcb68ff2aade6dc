"""What is refused before any route runs: foreign hosts and origins, bodies that are too large, too slow or of two
lengths."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problem import ProblemError, problem
from api.settings import LOOPBACK_HOSTS, Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
BODY_TIMEOUT_S = 60.0
"""For the whole body, however slowly it trickles in: connections are few."""
SMALL_BODY_BYTES = 4096
"""For what takes a word or nothing: PATCH, DELETE, and whatever no route takes."""
SHAPES = (("POST", "/tune"), ("POST", "/lookup"))
IMPORT = ("POST", "/import")
PORTS = {"http": 80, "https": 443}

Origin = tuple[str, str, int]
"""Scheme, host and port: what tells one web page's home from another's."""


class LengthGuard:
    """Refuses a body with two lengths, and ends the connection (RFC 9112, section 6.1).

    A proxy in front that goes by the other one takes what follows for somebody else's request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "content-length" in headers and "transfer-encoding" in headers:
                detail = "expected Content-Length or Transfer-Encoding, found both: send one of them"
                response = problem(400, detail)
                response.headers["Connection"] = "close"
                return await response(scope, receive, send)
        return await self.app(scope, receive, send)


class HostGuard:
    """Answers only to the names that the service has.

    A web page may resolve its own name to 127.0.0.1 (DNS rebinding) or post to http://127.0.0.1 from elsewhere:
    the first carries its own Host, the second its own Origin. A page may change something only where it came from:
    by the same scheme, host and port, of which the port tells the service from any other on the same machine.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        here, sent = _origin(f"{scope['scheme']}://{headers.get('host', '')}"), headers.get("origin")
        host = "" if here is None else here[1]
        named = self.settings.loopback or bool(self.settings.hosts)
        ours = (*LOOPBACK_HOSTS, self.settings.host, *self.settings.hosts) if named else (host,)
        if not host or host not in ours:
            names = ", ".join(("127.0.0.1", "localhost", *self.settings.hosts))
            detail = f"expected Host {names}, found {host!r}: use one of those, or start with --allow-host"
            return await problem(421, detail)(scope, receive, send)
        if sent is not None and scope["method"] not in SAFE_METHODS and not self._same(sent, here):
            detail = f"a page from {sent!r} may not change anything here: use the service's own address"
            return await problem(403, detail)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _same(self, sent: str, here: Origin | None) -> bool:
        """Behind a proxy that ends TLS and does not say so, a name of ours is ours by https, too."""
        origin = _origin(sent)
        proxied = here is not None and here[1] in self.settings.hosts and origin == ("https", here[1], PORTS["https"])
        return origin is not None and (origin == here or proxied)


def taken(scope: Scope) -> bool:
    """Whether there is a route for it."""
    return any(route.matches(dict(scope))[0] is Match.FULL for route in scope["app"].routes)


def body_limit(method: str, path: str, settings: Settings) -> int:
    """How many bytes a request may have."""
    if (method, path) == IMPORT:
        return settings.max_import_bytes
    return settings.max_body_bytes if (method, path) in SHAPES else min(SMALL_BODY_BYTES, settings.max_body_bytes)


class BodyGuard:
    """Reads the body before the route does: 413 once it is larger than the route may have, 408 when it takes too long.

    A bundle, which may be large, is read by its route, into a file; how much and how long is watched here all the same.
    Whoever may not send one was refused before: nothing of a body is read for somebody without a token, nor of one that
    no route takes. Nothing is made of a part.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            return await self.app(scope, receive, send)
        limit = body_limit(scope["method"], scope["path"], self.settings)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > limit:
            return await _problem(_too_large(limit))(scope, receive, send)
        if limit <= SMALL_BODY_BYTES and not taken(scope):
            return await self.app(scope, _replay(b"", receive), send)
        watched = _watched(receive, limit)
        if (scope["method"], scope["path"]) == IMPORT:
            return await self.app(scope, watched, send)
        try:
            body = await _read(watched)
        except ProblemError as error:
            return await _problem(error)(scope, receive, send)
        return await self.app(scope, _replay(body, receive), send)


def _watched(receive: Receive, limit: int) -> Receive:
    """A `receive` that raises ProblemError beyond `limit` bytes, or when the whole body is not there in time."""
    size, ends_at = 0, asyncio.get_running_loop().time() + BODY_TIMEOUT_S

    async def watched() -> Message:
        nonlocal size, ends_at
        try:
            async with asyncio.timeout_at(ends_at):
                message = await receive()
        except TimeoutError:
            raise ProblemError(
                408, f"expected the whole body within {BODY_TIMEOUT_S:g} s, found only a part of it: send it again"
            ) from None
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            ends_at = float("inf")  # what comes now is the disconnect, however late
        return message

    return watched


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, f"the body may have {limit} bytes here: this one has more; split it into several requests")


def _problem(error: ProblemError) -> ASGIApp:
    return problem(error.status, error.detail)


async def _read(receive: Receive) -> bytes:
    """The whole body. Raises ProblemError, which nobody reads, if the client leaves before."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ProblemError(408, "expected the whole body, found a client that left before")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, then whatever comes next (the disconnect)."""
    pending = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed


def _origin(url: str) -> Origin | None:
    """Of an address or of an Origin header; None for what is neither (`null`, say)."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme)
        host = (parts.hostname or "").lower()
    except ValueError:
        return None
    return (parts.scheme, host, port) if host and port is not None else None
