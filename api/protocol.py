"""HTTP/1.1 as uvicorn speaks it, for clients that take their time: nobody holds a connection without using it.

uvicorn closes connections that are idle between requests. A client that sends a head byte by byte, or does not read
what it asked for, it would serve for ever; a few hundred of those are all connections that there are.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_S = 10.0
"""For a request's first line and headers, from the connection or the end of the request before."""
UNREAD_S = 30.0
"""For a client to take what fits between it and the service: 64 KiB or so."""
REST_S = 2.0
"""For the rest of a body that nobody reads, as its request was refused: long enough to read the answer."""
MAX_CONNECTIONS = 256
"""Long before file descriptors run out: 1024 is a common limit, and the database has some too. Whoever comes beyond
them takes the place of one that is idle; where none is, 503."""
MAX_REFUSED = 128
"""Further connections that are told so; others are closed without a word."""
REFUSED = "autotune.refused"
"""Set in the state of requests by a connection that found no place. Those that had theirs before keep it."""
TOO_LATE = {
    "type": "about:blank", "title": "Request Timeout", "status": 408,
    "detail": f"expected a whole request within {HEAD_S:g} s, found only a part of its head: send it at once",
}  # fmt: skip


class PatientProtocol(H11Protocol):
    """One connection, with a timer for the next head or what is left of a body, and one for what is not read."""

    _idle_since = 0.0
    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn; from here on the head is waited for."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS and not self._find_place():
            transport.abort()
            return
        self._expect(HEAD_S)

    def _find_place(self) -> bool:
        """False if there is not even one to be refused in."""
        others = [
            connection for connection in self.connections
            if isinstance(connection, PatientProtocol) and connection is not self
            and not connection.transport.is_closing()
        ]  # fmt: skip
        if len(others) < MAX_CONNECTIONS:
            return True
        idle = min((other for other in others if other.idle), key=PatientProtocol.worth, default=None)
        if idle is not None:
            idle.transport.close()
            return True
        self.app_state = {**self.app_state, REFUSED: True}
        return len(others) < MAX_CONNECTIONS + MAX_REFUSED

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if it ends: nothing that was asked is unanswered, and all of the answer has left."""
        return not self._answering and not self.transport.get_write_buffer_size()

    def worth(self) -> tuple[bool, float]:
        """Of those that are idle: less if it is not even amid a head, and the longer it has been so."""
        return bool(self.conn.trailing_data[0]), self._idle_since

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn."""
        self._expect(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As uvicorn; once the head is whole, its time no longer runs."""
        super().data_received(data)
        if self._answering:
            self._expect(None)

    def on_response_complete(self) -> None:
        """As uvicorn; what comes next is another head, or what is left of a body."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect(None)
        elif not self._answering:  # the next one may have been there already
            self._expect(HEAD_S if self.conn.their_state is h11.IDLE else REST_S)

    @property
    def _answering(self) -> bool:
        """Whether a request is being answered; uvicorn has no cycle before the first one."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def pause_writing(self) -> None:
        """The client reads more slowly than is written."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read what there was."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _expect(self, seconds: float | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        """Say so to a client that is amid its head; the others know, or never said a word."""
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            content = json.dumps(TOO_LATE).encode()
            headers = [
                (b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(content)),
                (b"connection", b"close"),
            ]  # fmt: skip
            status = HTTPStatus.REQUEST_TIMEOUT
            events: list[Any] = [
                h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
