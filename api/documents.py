"""What the service answers with: values of `autotune` as JSON that any parser takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autotune.job import Job
from autotune.measurement import Measurement
from autotune.winner import Winner
from strategies.shape import JsonObject


def winner_document(winner_id: int | None, winner: Winner) -> JsonObject:
    """A winner with what a reader wants to see beside it; `winner` is what `Winner.from_json` takes."""
    document = {
        "digest": winner.key.digest, "name": str(winner.key), "device": winner.key.device.device,
        "strategy": str(winner.candidate), "state": str(winner.state), "winner": finite(winner.to_json()),
    }  # fmt: skip
    return document if winner_id is None else {"id": winner_id, **document}


def detailed_document(winner_id: int, winner: Winner, measurements: Sequence[Measurement]) -> JsonObject:
    """A winner and every measurement behind it, without repeating the key in each."""
    behind = []
    for measurement in measurements:
        content = finite(measurement.to_json())
        del content["key"]
        behind.append(content)
    return {**winner_document(winner_id, winner), "measurements": behind}


def job_document(job: Job) -> JsonObject:
    """A job with its keys, their names and digests."""
    keys = [key.to_json() for key in job.keys]
    names, digests = [str(key) for key in job.keys], [key.digest for key in job.keys]
    states = [str(state) for state in job.states]
    return {**job_summary(job), "keys": keys, "names": names, "digests": digests, "states": states}


def job_summary(job: Job) -> JsonObject:
    """A job without its keys, of which there may be thousands: for lists and streams."""
    name = str(job.keys[0]) if job.total_keys == 1 else f"{job.total_keys} shapes"
    return {
        "id": job.id, "name": name, "state": str(job.state), "done_keys": job.done_keys, "total_keys": job.total_keys,
        "progress": finite(job.progress), "budget": job.budget.to_json(), "error": job.error,
        "created_at": job.created_at, "started_at": job.started_at, "ended_at": job.ended_at,
        "priority": job.terms.priority, "deadline": job.terms.deadline, "idle": job.terms.idle,
        "retry_of": job.retry_of,
    }  # fmt: skip


def finite(value: Any) -> Any:
    """The same JSON value with null for NaN and infinity: the error of a wrong candidate may be either."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
