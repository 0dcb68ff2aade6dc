"""A client of the service, on the standard library alone: cheap to import, the same for every caller."""

from __future__ import annotations

import http
import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from autotune.bundle import BundleError, parse_winner
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey
from strategies.shape import JsonObject

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_ANSWER_BYTES = 256 << 20


class ServiceError(RuntimeError):
    """The service answered with a problem document: `status`, its `detail` as the message, and all of it."""

    def __init__(self, status: int, detail: str, problem: Mapping[str, Any]) -> None:
        super().__init__(detail)
        self.status, self.problem = status, dict(problem)


class ServiceUnreachableError(RuntimeError):
    """Nobody answered, or what answered is not the service."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Following one would hand the token to whoever is named there."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirect itself is the answer, an error."""


class Client:
    """One service by its address. Every method raises ServiceError or ServiceUnreachableError.

    Not bound to a connection: safe to use from several threads.
    """

    def __init__(self, url: str, *, token: str = "", timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._token, self._timeout_s = token, timeout_s
        proxies: dict[str, str] | None = (
            {} if urlsplit(url).hostname in LOOPBACK else None
        )  # a proxy's loopback is not ours
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), NoRedirects)

    def tune(self, body: Mapping[str, Any]) -> JsonObject:
        """`POST /tune`: the job."""
        return self._call("POST", "/tune", body)

    def job(self, job_id: str) -> JsonObject:
        """One job."""
        return self._call("GET", f"/jobs/{quote(job_id, safe='')}")

    def cancel(self, job_id: str) -> JsonObject:
        """Cancel a job."""
        return self._call("DELETE", f"/jobs/{quote(job_id, safe='')}")

    def follow(
        self, job_id: str, *, poll_s: float = 0.3, patience_s: float = 30.0,
        sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[JsonObject]:  # fmt: skip
        """The job whenever asked, until it has ended; the last one is its end.

        The job outlasts a service that is restarted or whose database is locked, so this does, for `patience_s`.
        """
        answered_at = clock()
        while True:
            try:
                job = self.job(job_id)
            except (ServiceError, ServiceUnreachableError) as error:
                passing = not isinstance(error, ServiceError) or error.status == http.HTTPStatus.SERVICE_UNAVAILABLE
                if not passing or clock() - answered_at > patience_s:
                    raise
            else:
                answered_at = clock()
                yield job
                if job["state"] not in ("queued", "running"):
                    return
            sleep(poll_s)

    def lookup(self, query: Mapping[str, str]) -> JsonObject:
        """`GET /lookup` with its query parameters."""
        return self._call("GET", f"/lookup?{urlencode(query)}")

    def lookup_keys(self, keys: Iterable[ConvKey]) -> dict[str, Winner]:
        """The winners of many keys by digest; those not known are absent."""
        answer = self._call("POST", "/lookup", {"keys": [key.to_json() for key in keys]})
        return {digest: _winner(data) for digest, data in answer["winners"].items()}

    def winners(self, *, device: str | None = None) -> Iterator[tuple[int, Winner]]:
        """Every current winner with its id, page by page."""
        offset: int | None = 0
        while offset is not None:
            query = {"limit": "1000", "offset": str(offset), **({"device": device} if device else {})}
            answer = self._call("GET", f"/winners?{urlencode(query)}")
            yield from ((item["id"], _winner(item["winner"])) for item in answer["winners"])
            offset = answer["next"]

    def kernels(self, winner_id: int, *, source: bool = False) -> JsonObject:
        """`GET /winners/{id}/kernels`: why it won. The service compiles and times it if nobody has asked before."""
        return self._call("GET", f"/winners/{winner_id}/kernels?source={str(source).lower()}")

    def health(self) -> JsonObject:
        """`GET /healthz`: that it answers, and its version."""
        return self._call("GET", "/healthz")

    def ready(self) -> JsonObject:
        """`GET /readyz`: that it can work; raises ServiceError of status 503 if it cannot."""
        return self._call("GET", "/readyz")

    def token(self) -> JsonObject:
        """`GET /token`: what this client's token is good for."""
        return self._call("GET", "/token")

    def set_state(self, winner_id: int, state: WinnerState) -> Winner:
        """`PATCH /winners/{id}`: the winner as it is now."""
        return _winner(self._call("PATCH", f"/winners/{winner_id}", {"state": str(state)})["winner"])

    def devices(self) -> JsonObject:
        """`GET /devices`."""
        return self._call("GET", "/devices")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> JsonObject:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)  # noqa: S310 - http(s): Settings saw to it
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer: JsonObject = json.loads(response.read(MAX_ANSWER_BYTES))
                return answer
        except urllib.error.HTTPError as error:
            with error:
                raise _service_error(error, self.url) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, socket.timeout):
                reason = f"no answer within {self._timeout_s:g} s"
            raise ServiceUnreachableError(
                f"expected the service at {self.url}: {reason}; start it with `autotune serve` or unset AUTOTUNE_URL"
            ) from None
        except ValueError as error:
            raise ServiceUnreachableError(f"{self.url} answers, but not as the service does: {error}") from None


def _winner(data: Any) -> Winner:
    try:
        return parse_winner(data)
    except BundleError as error:
        raise ServiceUnreachableError(f"what answers is not the service, or another release of it: {error}") from None


def _service_error(error: urllib.error.HTTPError, url: str) -> ServiceError | ServiceUnreachableError:
    try:
        problem = json.loads(error.read(1 << 20))
        return ServiceError(error.code, str(problem["detail"]), problem)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ServiceUnreachableError(f"{url} answers with status {error.code}, but not as the service does")
