"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from autotune.client import calls
from autotune.client.calls import Call, JobDocument
from autotune.client.errors import ServiceError, ServiceUnreachableError
from autotune.client.following import PATIENCE_S, POLL_S, Following
from autotune.client.transport import Transport
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey
from strategies.shape import JsonObject

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 256 << 20

T = TypeVar("T")


class Client:
    """One service by its address. Every method raises ServiceError or ServiceUnreachableError.

    Not bound to a connection: safe to use from several threads. `AsyncClient` has the same methods to await.
    """

    def __init__(self, url: str, *, token: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._transport = Transport(url, token=token, timeout_s=timeout_s, max_answer_bytes=MAX_ANSWER_BYTES)
        self.url = self._transport.url

    def tune(self, body: Mapping[str, Any]) -> JobDocument:
        """`POST /tune`: the job."""
        return self._ask(calls.tune(body))

    def job(self, job_id: str) -> JobDocument:
        """One job."""
        return self._ask(calls.job(job_id))

    def cancel(self, job_id: str) -> JobDocument:
        """Cancel a job."""
        return self._ask(calls.cancel(job_id))

    def follow(
        self, job_id: str, *, poll_s: float = POLL_S, patience_s: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[JobDocument]:  # fmt: skip
        """The job whenever asked, until it has ended; the last one is its end."""
        following = Following(patience_s, clock)
        while True:
            try:
                job = self.job(job_id)
            except (ServiceError, ServiceUnreachableError) as error:
                if not following.bears(error):
                    raise
            else:
                last = following.ended(job)
                yield job
                if last:
                    return
            sleep(poll_s)

    def lookup(self, query: Mapping[str, str]) -> JsonObject:
        """`GET /lookup` with its query parameters."""
        return self._ask(calls.lookup(query))

    def lookup_keys(self, keys: Iterable[ConvKey]) -> dict[str, Winner]:
        """The winners of many keys by digest; those not known are absent."""
        return self._ask(calls.lookup_keys(keys))

    def winners(self, *, device: str | None = None) -> Iterator[tuple[int, Winner]]:
        """Every current winner with its id, page by page."""
        offset: int | None = 0
        while offset is not None:
            page = self._ask(calls.winners(device=device, offset=offset))
            yield from page.winners
            offset = page.next

    def kernels(self, winner_id: int, *, source: bool = False) -> JsonObject:
        """`POST /winners/{id}/kernels`: why it won. The service compiles and times it if nobody has asked before."""
        return self._ask(calls.kernels(winner_id, source=source))

    def set_state(self, winner_id: int, state: WinnerState) -> Winner:
        """`PATCH /winners/{id}`: the winner as it is now."""
        return self._ask(calls.set_state(winner_id, state))

    def health(self) -> JsonObject:
        """`GET /healthz`: that it answers, and its version."""
        return self._ask(calls.document("/healthz"))

    def ready(self) -> JsonObject:
        """`GET /readyz`: that it can work; raises ServiceError of status 503 if it cannot."""
        return self._ask(calls.document("/readyz"))

    def token(self) -> JsonObject:
        """`GET /token`: what this client's token is good for."""
        return self._ask(calls.document("/token"))

    def devices(self) -> JsonObject:
        """`GET /devices`."""
        return self._ask(calls.document("/devices"))

    def workers(self) -> JsonObject:
        """`GET /workers`: of a fleet, who was heard of last first."""
        return self._ask(calls.document("/workers"))

    def _ask(self, call: Call[T]) -> T:
        return call.answer(self._transport.send(call), self.url)
