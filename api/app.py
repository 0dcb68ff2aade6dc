"""The HTTP service: a factory that puts store, lanes and devices behind routes."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from api.authority import Authority, TokenGuard
from api.devices import Devices
from api.explanations import Explanations
from api.guard import BodyGuard, HostGuard, LengthGuard
from api.housekeeping import Housekeeping
from api.jobs import JobRunner, Tune
from api.lanes import Lanes
from api.metrics import Metrics
from api.observe import Observer
from api.openapi import describe
from api.problem import install_handlers
from api.readiness import Readiness
from api.release import release
from api.routes import bundle, dashboard, health, jobs, kernels, lookup, winners, workers
from api.service import Service
from api.settings import Settings
from api.shared import Followed, Shared
from api.streams import Streams
from autotune.tune import tune as default_tune
from db import SqlStore


def create_app(
    store: SqlStore,
    lanes: Lanes,
    settings: Settings,
    *,
    devices: Devices,
    remembered: Devices | None = None,
    tune: Tune = default_tune,
) -> FastAPI:
    """The application. Its job runner lives as long as it does; store and lanes belong to the caller.

    `remembered` are the devices for readers, whose questions must not open any; by default, `devices`.
    """
    job_runner, housekeeping = JobRunner(store, lanes, tune=tune), Housekeeping(store, settings.retention_s)
    metrics = Metrics(
        store, workers=job_runner.workers,
        lost=lambda: {"leases": job_runner.leases_lost, "lanes": job_runner.lanes_lost},
    )  # fmt: skip
    stopping = threading.Event()
    service = Service(
        store=store,
        devices=devices,
        remembered=remembered or devices,
        jobs=job_runner,
        settings=settings,
        authority=Authority(store),
        metrics=metrics,
        streams=Streams(settings.max_streams, metrics.streams),
        stopping=stopping,
        explanations=Explanations(should_stop=stopping.is_set),
        readiness=Readiness(store.expect_writable, store.active_jobs),
        followed=Followed(store.named_jobs, jobs.POLL_S),
        shown_jobs=Shared(lambda: dashboard.shown_jobs(store, job_runner), dashboard.LOOK_S),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(job_runner.start)
        housekeeping.start()
        yield
        service.stopping.set()
        housekeeping.stop()
        await run_in_threadpool(job_runner.stop)

    app = FastAPI(
        title="autotune", version=release(), lifespan=lifespan, redirect_slashes=False,
        docs_url=None, redoc_url=None,  # both load scripts from a CDN
        summary="The fastest verified lowering of each convolution in tinygrad, per device.",
    )  # fmt: skip
    app.state.service = service
    app.openapi = cache(lambda: describe(app, settings))  # type: ignore[method-assign]
    install_handlers(app)
    app.add_middleware(BodyGuard, settings=settings)
    app.add_middleware(TokenGuard, settings=settings, authority=service.authority)
    app.add_middleware(HostGuard, settings=settings)
    app.add_middleware(LengthGuard)
    app.add_middleware(Observer, metrics=service.metrics)
    app.include_router(lookup.answered)  # first: routes are tried in turn, and this one is asked most
    for module in (jobs, lookup, winners, kernels, bundle, workers, health, dashboard):
        app.include_router(module.router)
    app.mount("/static", dashboard.static_files())
    return app
