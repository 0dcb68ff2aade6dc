"""What a route works with: one value, made by `create_app`, handed to each route."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from starlette.requests import Request

from api.answers import Answers, Known
from api.authority import Authority
from api.devices import Devices
from api.explanations import Explanations
from api.imports import MAX_EXPORTS, Imports
from api.jobs import JobRunner
from api.metrics import Metrics
from api.present import Present
from api.readiness import Readiness
from api.settings import Settings
from api.shared import Followed, Shared
from api.streams import Streams
from db import SqlStore

MAX_WRITES = 20
"""Requests at once that may write: half of the threads that answer. Where a writer of another process is slow, those
that only read have the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The parts of a running service. `stopping` is set when it ends: streams close then.

    `devices` may be opened to be described, `remembered` are the same for whoever may only read. Event streams look at
    jobs through `followed`, those of pages at their list as HTML through `shown_jobs`.
    """

    store: SqlStore
    devices: Devices
    remembered: Devices
    jobs: JobRunner
    settings: Settings
    authority: Authority
    metrics: Metrics
    streams: Streams
    readiness: Readiness
    followed: Followed
    shown_jobs: Shared[str]
    explanations: Explanations
    stopping: threading.Event
    writes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_WRITES))
    answers: Answers = field(default_factory=Answers)
    known: Known = field(default_factory=Known)
    present: Present = field(default_factory=Present)
    imports: Imports = field(default_factory=Imports)
    exports: threading.Semaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_EXPORTS))


def get_service(request: Request) -> Service:
    """The dependency that gives a route its Service."""
    service: Service = request.app.state.service
    return service
