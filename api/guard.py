"""What is refused before any route runs: foreign hosts and origins on loopback, bodies that are too large."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problem import problem
from api.settings import LOOPBACK_HOSTS, Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
BODY_TIMEOUT_S = 60.0
"""For the whole body, however slowly it trickles in: connections are few."""


class HostGuard:
    """Answers only to the names that the service has.

    A web page may resolve its own name to 127.0.0.1 (DNS rebinding) or post to http://127.0.0.1 from elsewhere:
    the first carries its own Host, the second its own Origin. Where any name may be the service's, as it listens
    beyond loopback and was told none, a page may still change something only at the Host that it came from.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = _hostname("//" + headers.get("host", "")), headers.get("origin")
        named = self.settings.loopback or bool(self.settings.hosts)
        ours = (*LOOPBACK_HOSTS, self.settings.host, *self.settings.hosts) if named else (host,)
        if host not in ours:
            names = ", ".join(("127.0.0.1", "localhost", *self.settings.hosts))
            detail = f"expected Host {names}, found {host!r}: use one of those, or start with --allow-host"
            return await problem(421, detail)(scope, receive, send)
        if origin is not None and _hostname(origin) not in ours and scope["method"] not in SAFE_METHODS:
            detail = f"a page from {origin!r} may not change anything here: use the service's own address"
            return await problem(403, detail)(scope, receive, send)
        return await self.app(scope, receive, send)


class BodyGuard:
    """Reads the body before the route does: 413 once it is larger than allowed, 408 when it takes too long."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            return await self.app(scope, receive, send)
        importing = scope["path"] == "/import"
        limit = self.settings.max_import_bytes if importing else self.settings.max_body_bytes
        declared = Headers(scope=scope).get("content-length", "0")
        too_large = declared.isdecimal() and int(declared[:20]) > limit
        try:
            body = None if too_large else await asyncio.wait_for(_read(receive, limit), BODY_TIMEOUT_S)
        except TimeoutError:
            detail = f"expected the whole body within {BODY_TIMEOUT_S:g} s, found only a part of it: send it again"
            return await problem(408, detail)(scope, receive, send)
        if body is None:
            detail = f"the body may have {limit} bytes: this one has more; split it into several requests"
            return await problem(413, detail)(scope, receive, send)
        return await self.app(scope, _replay(body, receive), send)


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None once it is longer than `limit`."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > limit:
            return None
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


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
