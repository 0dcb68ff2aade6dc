"""How a job is followed, whoever waits between two questions."""

from __future__ import annotations

import http
from collections.abc import Callable

from autotune.client.calls import JobDocument
from autotune.client.errors import ServiceError, ServiceUnreachableError

POLL_S = 0.3
PATIENCE_S = 30.0
UNDER_WAY = ("queued", "running")


class Following:
    """A job outlasts a service that is restarted or whose database is locked; so does who follows it, for `patience_s`
    after the last answer."""

    def __init__(self, patience_s: float, clock: Callable[[], float]) -> None:
        self._patience_s, self._clock = patience_s, clock
        self._answered_at = clock()

    def ended(self, job: JobDocument) -> bool:
        """Take note of an answer; whether it is the last one."""
        self._answered_at = self._clock()
        return job["state"] not in UNDER_WAY

    def bears(self, error: ServiceError | ServiceUnreachableError) -> bool:
        """Whether to ask again after this."""
        passing = not isinstance(error, ServiceError) or error.status == http.HTTPStatus.SERVICE_UNAVAILABLE
        return passing and self._clock() - self._answered_at <= self._patience_s
