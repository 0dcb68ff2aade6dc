"""HTTP/1.1 as uvicorn speaks it, for clients that take their time: nobody holds a connection without using it.

uvicorn closes connections that are idle between requests. A client that sends a head byte by byte, or does not read
what it asked for, it would serve for ever; a few hundred of those are all connections that there are. Who needs no
token keeps nobody out by taking its time over a body or an answer, either: it gives way to whoever comes.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from api.authority import PRESENTED

HEAD_S = 10.0
"""For a request's first line and headers, from the connection or the end of the request before."""
UNREAD_S = 30.0
"""For a client to take what fits between it and the service: 64 KiB or so."""
REST_S = 2.0
"""For the rest of a body that nobody reads, as its request was refused: long enough to read the answer."""
MAX_CONNECTIONS = 256
"""Long before file descriptors run out: 1024 is a common limit, and the database has some too. Whoever comes beyond
them takes the place of one that is idle, or else of one without a token that its client keeps waiting; where there is
none, 503."""
MAX_REFUSED = 128
"""Further connections that are told so; others are closed without a word."""
REFUSED = "autotune.refused"
"""Set in the state of requests by a connection that found no place. Those that had theirs before keep it."""
TOO_LATE = {
    "type": "about:blank", "title": "Request Timeout", "status": 408,
    "detail": f"expected a whole request within {HEAD_S:g} s, found only a part of its head: send it at once",
}  # fmt: skip
GIVES_WAY = {
    "type": "about:blank", "title": "Service Unavailable", "status": 503,
    "detail": f"expected a whole body while others wait for one of {MAX_CONNECTIONS} connections, found only a part of "
    "it: send it again, at once",
}  # fmt: skip


class PatientProtocol(H11Protocol):
    """One connection, with a timer for the next head or what is left of a body, and one for what is not read."""

    _since = 0.0
    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn; from here on the head is waited for."""
        super().connection_made(transport)
        self._since = self.loop.time()
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
        slow = min((other for other in others if other.slow), key=PatientProtocol.worth, default=None)
        if slow is not None:
            slow.give_way()
            return True
        self.app_state = {**self.app_state, REFUSED: True}
        return len(others) < MAX_CONNECTIONS + MAX_REFUSED

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if it ends: nothing that was asked is unanswered, and all of the answer has left."""
        return not self._answering and not self.transport.get_write_buffer_size()

    @property
    def slow(self) -> bool:
        """Whether it waits for a client that was let in without a token: for more of a body, or for an answer to be
        read."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.scope.get(PRESENTED, cycle) is not None:
            return False
        return self._unread is not None or (self.conn.their_state is h11.SEND_BODY and not cycle.response_started)

    def give_way(self) -> None:
        """End, amid a body with a word of why; nothing is made of what there is of it."""
        cycle: RequestResponseCycle = self.cycle
        if self._unread is not None or cycle.response_started:
            self.transport.abort()
            return
        cycle.disconnected = True  # so that its own answer is none
        cycle.message_event.set()
        self._say(GIVES_WAY)

    def worth(self) -> tuple[bool, float]:
        """Less if it is not even amid a head, and the longer it has been as it is."""
        return bool(self.conn.trailing_data[0]), self._since

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn."""
        self._expect(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As uvicorn; once the head is whole, its time no longer runs."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._since = self.loop.time()
        if self._answering:
            self._expect(None)

    def on_response_complete(self) -> None:
        """As uvicorn; what comes next is another head, or what is left of a body."""
        self._since = self.loop.time()
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
            self._say(TOO_LATE)
        else:
            self.transport.close()

    def _say(self, found: dict[str, Any]) -> None:
        """A problem document, and the end."""
        content, status = json.dumps(found).encode(), HTTPStatus(found["status"])
        headers = [
            (b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
        ]  # fmt: skip
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"5"))
        events: list[Any] = [
            h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
