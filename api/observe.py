"""Around every request: an id, a log line for what matters, and counts for Prometheus."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.authority import SAFE_METHODS
from api.logs import request_id
from api.release import release
from db import DatabaseError, SqlStore

GIVEN_ID = re.compile(r"[-A-Za-z0-9._]{1,64}")
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS")

log = logging.getLogger("autotune.requests")


class Metrics:
    """What Prometheus asks for: requests as they were counted here, the database as it is when asked."""

    def __init__(self, store: SqlStore) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "autotune_http_requests", "Answered requests", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "autotune_http_request_seconds", "Until the answer's first byte", ["route"], buckets=BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(DatabaseCollector(store))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class DatabaseCollector(Collector):
    """Rows and jobs. While the database does not answer, only that it does not."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering asks for nothing."""
        return []

    def collect(self) -> Iterable[Metric]:
        """As Prometheus' client asks for them."""
        info = GaugeMetricFamily("autotune_info", "The release", labels=["version"])
        info.add_metric([release()], 1)
        yield info
        up = GaugeMetricFamily("autotune_database_up", "Whether the database answers")
        try:
            rows, jobs = self._store.counts(), self._store.job_counts()
        except DatabaseError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield _family("autotune_rows", "Rows in the database", "table", rows)
        yield _family("autotune_jobs", "Jobs by state", "state", jobs)


def _family(name: str, what: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


class Observer:
    """The outermost layer. A request that names a sane X-Request-Id keeps it, others are given one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(name)
        started = time.perf_counter()
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        answered_s = 0.0

        async def observed(message: Message) -> None:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = message["status"], time.perf_counter() - started
                headers = [(b"x-request-id", name.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            answered_s = answered_s or time.perf_counter() - started
            self.metrics.count(scope["method"], _route(scope), status, answered_s)
            _log(scope, status, answered_s)
            request_id.reset(token)


def _route(scope: Scope) -> str:
    """The route's path with its parameters unfilled: few values, whatever is asked for."""
    return getattr(scope.get("route"), "path", "none")


def _log(scope: Scope, status: int, seconds: float) -> None:
    level = logging.INFO if scope["method"] not in SAFE_METHODS and scope["path"] != "/lookup" else logging.DEBUG
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        level = logging.ERROR
    elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.MISDIRECTED_REQUEST):
        level = logging.WARNING
    if log.isEnabledFor(level):
        client = (scope.get("client") or ("",))[0]
        fields = {"method": scope["method"], "path": scope["path"], "status": status, "client": client}
        fields["seconds"] = round(seconds, 6)
        text = "%s %r from %s: %d after %.1f ms"
        log.log(level, text, scope["method"], scope["path"], client, status, seconds * 1e3, extra={"fields": fields})
