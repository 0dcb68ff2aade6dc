"""What Prometheus asks for: what was counted here, and the database as it is when asked. See docs/monitoring.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.release import release
from autotune.fleet import Worker
from autotune.winner import WinnerState
from db import DatabaseError, SqlStore
from db.figures import Figures, Queue

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS")
GUESS = str(WinnerState.GUESS)
STATES = ("ended", "silent", "unfit", "in_use", "alive")
"""Of workers."""
MAX_QUEUES = 50
"""Labels come from callers: of the kinds of devices that keys wait for, those with most keys have their own."""
LOST = {
    "leases": "Keys put back as whoever had them fell silent",
    "lanes": "Threads that measure for the job runner and ended by a bug",
}


class Metrics:
    """One service's. `workers` and `lost`, counts by what they are of, are asked when Prometheus asks."""

    def __init__(
        self, store: SqlStore, *, workers: Callable[[], Sequence[Worker]], lost: Callable[[], Mapping[str, int]]
    ) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "autotune_http_requests", "Answered requests", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "autotune_http_request_seconds", "Until the answer's first byte", ["route"], buckets=BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        lookups = Counter("autotune_lookups", "Keys looked up, by what was known", ["outcome"], registry=self.registry)
        self._hits, self._guesses, self._misses = (lookups.labels(name) for name in ("hit", "guess", "miss"))
        self.streams = Gauge("autotune_streams", "Event streams that are open", registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(DatabaseCollector(store, workers, lost))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def looked_up(self, *, hits: int = 0, guesses: int = 0, misses: int = 0) -> None:
        """Keys that were asked for."""
        for counter, number in ((self._hits, hits), (self._guesses, guesses), (self._misses, misses)):
            if number:
                counter.inc(number)


class DatabaseCollector(Collector):
    """Queues, jobs, workers, attempts. While the database does not answer, only that it does not."""

    def __init__(
        self, store: SqlStore, workers: Callable[[], Sequence[Worker]], lost: Callable[[], Mapping[str, int]]
    ) -> None:
        self._store, self._workers, self._lost = store, workers, lost

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering asks for nothing."""
        return []

    def collect(self) -> Iterable[Metric]:
        """As Prometheus' client asks for them."""
        yield _family("autotune_info", "The release", "version", {release(): 1})
        for what, count in self._lost().items():
            family = CounterMetricFamily(f"autotune_{what}_lost", LOST[what])
            family.add_metric([], count)
            yield family
        try:
            figures, workers = self._store.figures(), self._workers()
        except DatabaseError:
            yield GaugeMetricFamily("autotune_database_up", "Whether the database answers", value=0)
            return
        yield GaugeMetricFamily("autotune_database_up", "Whether the database answers", value=1)
        revision = {figures.revision: 1}
        yield _family("autotune_database_revision", "The schema's migration", "revision", revision)
        yield _family("autotune_database_connections", "Connections to the database", "state", figures.pool)
        yield _family("autotune_rows", "Rows there ever were", "table", figures.rows)
        yield _family("autotune_jobs", "Jobs: all active ones, the latest that ended", "state", figures.jobs)
        yield _family("autotune_attempts", "Workers' attempts at the latest tasks", "outcome", figures.attempts)
        yield from _queues(figures)
        yield _workers(workers)


def _queues(figures: Figures) -> Iterable[Metric]:
    depth = GaugeMetricFamily("autotune_queue_keys", "Keys to be tuned", labels=["device", "target", "state"])
    oldest = GaugeMetricFamily(
        "autotune_queue_oldest_seconds", "Since when the oldest key waits", labels=["device", "target"]
    )
    for queue in _largest(figures.queues):
        for state, count in (("queued", queue.queued), ("running", queue.running)):
            depth.add_metric([queue.device, queue.target, state], count)
        if queue.since is not None:
            oldest.add_metric([queue.device, queue.target], max(0.0, figures.now - queue.since))
    return depth, oldest


def _largest(queues: Sequence[Queue]) -> list[Queue]:
    """MAX_QUEUES of them; the others are one, `other`."""
    ordered = sorted(queues, key=lambda queue: -(queue.queued + queue.running))
    shown, rest = ordered[:MAX_QUEUES], ordered[MAX_QUEUES:]
    if not rest:
        return shown
    queued, running = sum(queue.queued for queue in rest), sum(queue.running for queue in rest)
    since = min((queue.since for queue in rest if queue.since is not None), default=None)
    return [*shown, Queue(device="other", target="other", queued=queued, running=running, since=since)]


def _workers(workers: Sequence[Worker]) -> Metric:
    """Every state of each device, 0 where there is none: an alert on what is missing needs something to compare."""
    counts = {(worker.device.device, state): 0 for worker in workers for state in STATES}
    for worker in workers:
        counts[worker.device.device, _state(worker)] += 1
    family = GaugeMetricFamily("autotune_workers", "Workers heard of last", labels=["device", "state"])
    for labels, count in sorted(counts.items()):
        family.add_metric(list(labels), count)
    return family


def _state(worker: Worker) -> str:
    """The first that is true of it."""
    found = (worker.ended, not worker.alive, bool(worker.unfit), worker.in_use, True)
    return next(state for state, holds in zip(STATES, found, strict=True) if holds)


def _family(name: str, what: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
