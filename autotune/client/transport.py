"""Bytes there and back, for every caller: token, proxies, timeouts, sizes, and what each failure is called."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from autotune.client.calls import Call
from autotune.client.errors import ServiceError, ServiceUnreachableError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CHUNK_BYTES = 1 << 16

T = TypeVar("T")


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Following one would hand the token to whoever is named there."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirect itself is the answer, an error."""


class Transport:
    """The way to one service. Not bound to a connection: safe to use from several threads."""

    def __init__(self, url: str, *, token: str = "", timeout_s: float, max_answer_bytes: int) -> None:
        """`timeout_s` is of each step (connecting, each read), and of the body in all."""
        self.url = url.rstrip("/")
        self._token, self._timeout_s, self._max_answer_bytes = token, timeout_s, max_answer_bytes
        proxies: dict[str, str] | None = (
            {} if urlsplit(url).hostname in LOOPBACK else None
        )  # a proxy's loopback is not ours
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), NoRedirects)

    def send(self, call: Call[Any]) -> bytes:
        """The body of the answer. Raises ServiceError or ServiceUnreachableError."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(  # noqa: S310 - whoever gives the address sees to http(s)
            self.url + call.path, data=call.body, headers=headers, method=call.method
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return self._read(response)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self.unanswered(getattr(error, "reason", error)) from None  # URLError wraps what happened

    def unanswered(self, reason: object) -> ServiceUnreachableError:
        """The error for a service that gave no answer because of `reason`."""
        if isinstance(reason, TimeoutError):
            found = f"none within {self._timeout_s:g} s"
        else:
            found = " ".join(f"{type(reason).__name__}: {reason}".split())
        return ServiceUnreachableError(
            f"expected an answer from {self.url}, found {found}: check that `autotune serve` runs there"
        )

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        chunks, size = [], 0
        while chunk := response.read1(CHUNK_BYTES):
            size += len(chunk)
            if size > self._max_answer_bytes:
                raise ServiceUnreachableError(
                    f"expected at most {self._max_answer_bytes} bytes from {self.url}, found more: check that it is "
                    f"the autotune service"
                )
            if time.monotonic() > deadline:
                raise TimeoutError
            chunks.append(chunk)
        return b"".join(chunks)

    def _refused(self, error: urllib.error.HTTPError) -> ServiceError | ServiceUnreachableError:
        try:
            problem = json.loads(self._read(cast("http.client.HTTPResponse", error.fp)))
            return ServiceError(error.code, " ".join(str(problem["detail"]).split()), problem)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
            advice = "set AUTOTUNE_TOKEN" if error.code in (401, 403) else "check the address"
            return ServiceUnreachableError(f"expected status 200 from {self.url}, found {error.code}: {advice}")


def in_background(work: Callable[[], T]) -> Future[T]:
    """The result of `work` from a thread of its own, which whoever stops waiting leaves behind: it neither delays
    the end of the program nor that of an event loop, as a pool's would."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - carried to who waits
            future.set_exception(error)

    threading.Thread(target=run, name="autotune-client", daemon=True).start()
    return future
