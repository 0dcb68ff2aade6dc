"""Event streams: each is a connection for as long as it lasts, so whoever asks may have so many."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping

from prometheus_client import Gauge
from starlette.requests import HTTPConnection
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.authority import presented_name
from api.problem import ProblemError
from api.protocol import MAX_CONNECTIONS

MAX_STREAMS = MAX_CONNECTIONS // 2
"""Whoever they belong to: others must be answered, too."""


class Streams:
    """Those that are open, by whose they are. Of one event loop."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        self._limit, self._gauge = limit, gauge
        self._open = Counter[str]()

    def begin(
        self, connection: HTTPConnection, content: AsyncIterator[str], *, headers: Mapping[str, str]
    ) -> StreamingResponse:
        """The answer, counted until it ends. Raises ProblemError for one too many."""
        owner = presented_name(connection.scope)
        for count, limit, whose in (
            (self._open[owner], self._limit, "of yours "), (self._open.total(), MAX_STREAMS, "")
        ):  # fmt: skip
            if count >= limit:
                detail = f"expected at most {limit} event streams {whose}at once, found one more: close some"
                raise ProblemError(429, detail, retry_after_s=10)
        return Stream(self, owner, content, headers)

    def opened(self, owner: str, by: int) -> None:
        """One more, or one less."""
        self._open[owner] += by
        self._gauge.inc(by)
        if not self._open[owner]:
            del self._open[owner]


class Stream(StreamingResponse):
    """Counted however it ends: also if its client has left before the first event."""

    def __init__(self, streams: Streams, owner: str, content: AsyncIterator[str], headers: Mapping[str, str]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._streams, self._owner = streams, owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self._streams.opened(self._owner, 1)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.opened(self._owner, -1)
