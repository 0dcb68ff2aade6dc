"""The asynchronous client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from autotune.client import calls
from autotune.client.calls import Call, JobDocument
from autotune.client.client import MAX_ANSWER_BYTES, TIMEOUT_S
from autotune.client.errors import ServiceError, ServiceUnreachableError
from autotune.client.following import PATIENCE_S, POLL_S, Following
from autotune.client.transport import Transport, in_background
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey
from strategies.shape import JsonObject

T = TypeVar("T")


class AsyncClient:
    """One service by its address, for event loops: the methods of `Client`, to be awaited.

    Each question is asked from a thread of its own, so that proxies, certificates and timeouts are those of `Client`;
    the loop never waits, and a task that is cancelled ends at once. Not bound to a connection or to one loop.
    """

    def __init__(self, url: str, *, token: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._transport = Transport(url, token=token, timeout_s=timeout_s, max_answer_bytes=MAX_ANSWER_BYTES)
        self.url = self._transport.url

    async def tune(self, body: Mapping[str, Any]) -> JobDocument:
        """`POST /tune`: the job."""
        return await self._ask(calls.tune(body))

    async def job(self, job_id: str) -> JobDocument:
        """One job."""
        return await self._ask(calls.job(job_id))

    async def cancel(self, job_id: str) -> JobDocument:
        """Cancel a job."""
        return await self._ask(calls.cancel(job_id))

    async def follow(
        self, job_id: str, *, poll_s: float = POLL_S, patience_s: float = PATIENCE_S,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep, clock: Callable[[], float] = time.monotonic,
    ) -> AsyncIterator[JobDocument]:  # fmt: skip
        """The job whenever asked, until it has ended; the last one is its end."""
        following = Following(patience_s, clock)
        while True:
            try:
                job = await self.job(job_id)
            except (ServiceError, ServiceUnreachableError) as error:
                if not following.bears(error):
                    raise
            else:
                last = following.ended(job)
                yield job
                if last:
                    return
            await sleep(poll_s)

    async def lookup(self, query: Mapping[str, str]) -> JsonObject:
        """`GET /lookup` with its query parameters."""
        return await self._ask(calls.lookup(query))

    async def lookup_keys(self, keys: Iterable[ConvKey]) -> dict[str, Winner]:
        """The winners of many keys by digest; those not known are absent."""
        return await self._ask(calls.lookup_keys(keys))

    async def winners(self, *, device: str | None = None) -> AsyncIterator[tuple[int, Winner]]:
        """Every current winner with its id, page by page."""
        offset: int | None = 0
        while offset is not None:
            page = await self._ask(calls.winners(device=device, offset=offset))
            for found in page.winners:
                yield found
            offset = page.next

    async def kernels(self, winner_id: int, *, source: bool = False) -> JsonObject:
        """`POST /winners/{id}/kernels`: why it won. The service compiles and times it if nobody has asked before."""
        return await self._ask(calls.kernels(winner_id, source=source))

    async def set_state(self, winner_id: int, state: WinnerState) -> Winner:
        """`PATCH /winners/{id}`: the winner as it is now."""
        return await self._ask(calls.set_state(winner_id, state))

    async def health(self) -> JsonObject:
        """`GET /healthz`: that it answers, and its version."""
        return await self._ask(calls.document("/healthz"))

    async def ready(self) -> JsonObject:
        """`GET /readyz`: that it can work; raises ServiceError of status 503 if it cannot."""
        return await self._ask(calls.document("/readyz"))

    async def token(self) -> JsonObject:
        """`GET /token`: what this client's token is good for."""
        return await self._ask(calls.document("/token"))

    async def devices(self) -> JsonObject:
        """`GET /devices`."""
        return await self._ask(calls.document("/devices"))

    async def workers(self) -> JsonObject:
        """`GET /workers`: of a fleet, who was heard of last first."""
        return await self._ask(calls.document("/workers"))

    async def _ask(self, call: Call[T]) -> T:
        data = await asyncio.wrap_future(in_background(lambda: self._transport.send(call)))
        return call.answer(data, self.url)
