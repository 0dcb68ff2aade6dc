"""Who may ask for what. On loopback, everyone on the machine; beyond it, whoever has a token for it."""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from api.guard import SAFE_METHODS, taken
from api.problem import problem
from api.settings import Settings
from api.shared import Shared
from db import DatabaseError, SqlStore, Token
from db import Scope as Allowed
from db.tokens import digest

WRITING_METHODS = ("POST", "PUT", "PATCH", "DELETE")
"""Of others there are no routes: they are told so, whoever asks."""
OPEN = ("/healthz", "/readyz")
"""For whoever restarts the service or sends others to it."""
METRICS = "/metrics"
"""What says that the database is away must be said then, too: to whoever was let in when it last answered."""
COSTLY = (re.compile(r"/tune|/jobs/.*"), re.compile(r"/winners/[^/]+/kernels"), re.compile(r"/dashboard/kernels/[^/]+"))
"""What costs machine time where it is posted or deleted."""
MAX_REMEMBERED = 1000
WATCHED_S = 0.2
"""How often long answers look for tokens that were revoked."""
PRESENTED = "autotune.token"
"""Where a request's scope holds its Token, or None where it was let in without one."""
CHALLENGES = ('Bearer realm="autotune"', 'Basic realm="autotune: any user, the token as password"')
"""A header for each: of several in one, Chromium sees the first alone, and would never ask for the password."""


def needed(method: str, path: str, *, public_reads: bool) -> Allowed | None:
    """What a request needs beyond loopback; None: nothing. Whatever is not named here and writes needs the most."""
    if path in OPEN and method in SAFE_METHODS:
        return None
    if method not in WRITING_METHODS or path == "/lookup":
        return None if public_reads else Allowed.READ
    if any(pattern.fullmatch(path) for pattern in COSTLY):
        return Allowed.TUNE
    return Allowed.ADMIN


class Authority:
    """Tokens as the database has them: one that is revoked is refused from then on, whoever revoked it."""

    def __init__(self, store: SqlStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._changes = -1
        self._tokens: dict[str, Token | None] = {}
        self._watched = Shared(store.changes, WATCHED_S)

    def find(self, secret: str) -> Token | None:
        """The token, if there is one and it holds. Raises DatabaseError."""
        return self._find(digest(secret))

    def remembered(self, secret: str) -> Token | None:
        """As `find`, without the database: as it was when that last answered."""
        with self._lock:
            found = self._tokens.get(digest(secret))
        return found if found is not None and found.holds(self._clock()) else None

    def _find(self, secret_digest: str) -> Token | None:
        return self._as_of(self._store.changes(), secret_digest)

    def _as_of(self, changes: int, secret_digest: str) -> Token | None:
        with self._lock:
            if self._changes != changes or len(self._tokens) >= MAX_REMEMBERED:
                self._tokens, self._changes = {}, changes
            known = secret_digest in self._tokens
            found = self._tokens.get(secret_digest)
        if not known:
            found = self._store.token(secret_digest)
            with self._lock:
                if self._changes == changes:
                    self._tokens[secret_digest] = found
        return found if found is not None and found.holds(self._clock()) else None

    async def still_holds(self, connection: HTTPConnection) -> bool:
        """Whether what a long answer was begun with would still be let in; without a token it was not needed."""
        if connection.scope.get(PRESENTED) is None:
            return True
        changes = await self._watched.get()  # once for all streams
        return await run_in_threadpool(self._as_of, changes, digest(presented(connection.headers))) is not None


class TokenGuard:
    """401 without a token that holds, 403 with one that is not good for this, before a body is read."""

    def __init__(self, app: ASGIApp, *, settings: Settings, authority: Authority) -> None:
        self.app, self.settings, self.authority = app, settings, authority

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not self.settings.guarded:
            scope[PRESENTED] = None
            return await self.app(scope, receive, send)
        if scope["path"] in OPEN and scope["method"] in SAFE_METHODS:
            return await self.app(scope, receive, send)  # also while no token can be looked up
        need = needed(scope["method"], scope["path"], public_reads=self.settings.public_reads)
        secret = presented(Headers(scope=scope))
        reads = scope["method"] not in WRITING_METHODS  # not looked at, so that what there is stays unknown
        try:
            token = await run_in_threadpool(self.authority.find, secret) if secret else None
        except DatabaseError as error:
            token = self.authority.remembered(secret) if scope["path"] == METRICS and reads else None
            if token is None:
                detail = f"{error}; nothing acknowledged was lost, try again"
                return await problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after_s=5)(scope, receive, send)
        if token is None and not secret and need is not None and not (reads or taken(scope)):
            return await self.app(scope, receive, send)  # 405 or 404, whoever asks: nothing can happen
        if (secret and token is None) or (token is None and need is not None):
            found = "one that is unknown, revoked or expired" if secret else "none"
            answer = problem(
                HTTPStatus.UNAUTHORIZED,
                f"expected a token{f' that may {need}' if need else ''}, found {found}: make one with "
                "`autotune token create` where the database is, and set AUTOTUNE_TOKEN",
            )
            for challenge in CHALLENGES:
                answer.headers.append("WWW-Authenticate", challenge)
            return await answer(scope, receive, send)
        if need is not None and token is not None and not token.scope.covers(need):
            detail = f"expected a token that may {need}, found one that may {token.scope}: use another"
            return await problem(HTTPStatus.FORBIDDEN, detail)(scope, receive, send)
        scope[PRESENTED] = token
        return await self.app(scope, receive, send)


def presented_name(scope: Scope) -> str:
    """Whose a request is: its token's, or empty where none is needed and all are one."""
    token: Token | None = scope.get(PRESENTED)
    return "" if token is None else f"token:{token.id}"


def presented(headers: Headers) -> str:
    """The token in a request: as a bearer's, or as the password that a browser asks for; empty if there is none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return "unreadable"
    return ""
