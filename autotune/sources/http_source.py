"""Winners from a running service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autotune.bundle import BundleError, parse_json
from autotune.sources.source import SourceError, checked, usable
from autotune.winner import Winner
from strategies.key import ConvKey

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

HTTP_TIMEOUT_S = 0.3
HTTP_WINDOW_S = 5.0
MAX_ANSWER_BYTES = 64 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class HttpSource:
    """A service, asked with one `POST /lookup` for all keys.

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
        self._opener: OpenerDirector | None = None

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        import json

        wanted = {key.digest: key for key in keys}
        if not wanted:
            return {}
        return self._read(self._post(json.dumps({"keys": [key.to_json() for key in wanted.values()]}).encode()), wanted)

    def version(self) -> object:
        """The number of the time window: within one, winners are taken not to change."""
        return int(self._clock() // self._window_s)

    def close(self) -> None:
        """Nothing is held."""

    def _post(self, body: bytes) -> bytes:
        """The answer, from a thread of its own: sockets have a timeout per operation, never one in all."""
        opener = self._opener = self._opener or _build_opener(self._url)  # its imports are not the service's time
        outcome: list[bytes | BaseException] = []
        deadline = time.monotonic() + self._timeout_s

        def ask() -> None:
            try:
                outcome.append(self._ask(opener, body, deadline))
            except BaseException as error:  # noqa: BLE001 - carried to the caller
                outcome.append(error)

        thread = threading.Thread(target=ask, name="autotune-lookup", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        result = outcome[0] if outcome else TimeoutError()
        if isinstance(result, bytes):
            return result
        if isinstance(result, SourceError):
            raise result
        reason = getattr(result, "reason", result)  # URLError wraps what happened
        if isinstance(reason, TimeoutError):
            found = f"none within {self._timeout_s:g} s"
        else:
            found = " ".join(f"{type(reason).__name__}: {reason}".split())
        raise SourceError(
            f"expected an answer from {self._url}, found {found}: check that `autotune serve` runs there"
        ) from result

    def _ask(self, opener: OpenerDirector, body: bytes, deadline: float) -> bytes:
        from urllib.error import HTTPError
        from urllib.request import Request

        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(f"{self._url}/lookup", data=body, headers=headers, method="POST")  # noqa: S310
        try:
            with opener.open(request, timeout=self._timeout_s) as response:
                chunks, size = [], 0
                while chunk := response.read1(1 << 16):
                    size += len(chunk)
                    if size > self._max_answer_bytes:
                        raise SourceError(
                            f"expected at most {self._max_answer_bytes} bytes from {self._url}, found more: "
                            f"check that it is the autotune service"
                        )
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    chunks.append(chunk)
                return b"".join(chunks)
        except HTTPError as error:
            with error:
                advice = "set AUTOTUNE_TOKEN" if error.code in (401, 403) else "check the address"
                raise SourceError(f"expected status 200 from {self._url}, found {error.code}: {advice}") from None

    def _read(self, answer: bytes, wanted: Mapping[str, ConvKey]) -> dict[str, Winner]:
        try:
            document = parse_json(answer)
        except BundleError as error:
            raise SourceError(f"{self._url}: {error}") from None
        winners = document.get("winners") if isinstance(document, dict) else None
        if not isinstance(winners, dict):
            raise SourceError(
                f'expected {{"winners": {{...}}}} from {self._url}, found another answer: check the address'
            )
        if not winners.keys() <= wanted.keys():
            raise SourceError(
                f"expected winners of the keys asked for from {self._url}, found others: do not trust this source"
            )
        return usable(checked(winners, self._url))


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


def _build_opener(url: str) -> OpenerDirector:
    from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener

    class NoRedirects(HTTPRedirectHandler):
        """Following one would hand the token to whoever is named there."""

        def redirect_request(self, *_: Any) -> None:
            return None

    proxies: dict[str, str] | None = (
        {} if urlsplit(url).hostname in LOOPBACK else None
    )  # a proxy's loopback is not ours
    return build_opener(ProxyHandler(proxies), NoRedirects)
