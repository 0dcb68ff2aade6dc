"""Winners from a running service."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from autotune.sources.source import SourceError, usable
from autotune.winner import Winner
from strategies.key import ConvKey

if TYPE_CHECKING:
    from autotune.client.transport import Transport

HTTP_TIMEOUT_S = 0.3
HTTP_WINDOW_S = 5.0
MAX_ANSWER_BYTES = 64 << 20


class HttpSource:
    """A service, asked with one `POST /lookup` for all keys, by the client's own way.

    An answer takes at most `timeout_s` in all: name resolution, connecting, and however slowly bytes may trickle in.
    Who asks decides how soon a service that failed is asked again (`Winners` in autotune/decisions.py).
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        timeout_s: float = HTTP_TIMEOUT_S,
        window_s: float = HTTP_WINDOW_S,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` decides the window; the timeout is always of real time. Raises SourceError for what is no URL."""
        self._url, self._token = url.rstrip("/"), token.strip()
        _check(self._url, self._token)
        self._timeout_s, self._window_s, self._max_answer_bytes = timeout_s, window_s, max_answer_bytes
        self._clock = clock
        self._transport: Transport | None = None

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        if not keys:
            return {}
        from autotune.client import ServiceError, ServiceUnreachableError  # not the service's time: before the clock
        from autotune.client.calls import lookup_keys
        from autotune.client.transport import Transport, in_background

        transport = self._transport = self._transport or Transport(
            self._url, token=self._token, timeout_s=self._timeout_s, max_answer_bytes=self._max_answer_bytes
        )
        call = lookup_keys(keys)
        try:
            # In a thread of its own: sockets have a timeout per operation, never one in all.
            data = in_background(lambda: transport.send(call)).result(self._timeout_s)
            return usable(call.answer(data, self._url))
        except TimeoutError as error:
            raise SourceError(str(transport.unanswered(error))) from None
        except (ServiceError, ServiceUnreachableError) as error:
            raise SourceError(str(error)) from None

    def version(self) -> object:
        """The number of the time window: within one, winners are taken not to change."""
        return int(self._clock() // self._window_s)

    def close(self) -> None:
        """Nothing is held."""


def _check(url: str, token: str) -> None:
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        sound = False
    if not sound:
        # Not repeated: what cannot be read may hold a password anywhere.
        raise SourceError(
            "expected the address of a service, like http://127.0.0.1:8000, found no such URL: correct it "
            "(a credential goes into AUTOTUNE_TOKEN)"
        )
    if not (token.isascii() and token.isprintable()):
        raise SourceError("expected AUTOTUNE_TOKEN to be printable ASCII, found other characters: set it again")
