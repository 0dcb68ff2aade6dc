"""Why no worker measures for a kind of device, since when, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from autotune.fleet import Worker, this_release
from autotune.job import target_of
from strategies.key import DeviceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Why nobody measures for a kind of device, since when (epoch seconds), and what to do about it."""

    what: str
    since: float
    advice: str

    def __str__(self) -> str:
        """`waiting for a worker for METAL since 2026-01-31 12:00:00 UTC: start one ...`."""
        since = datetime.fromtimestamp(max(self.since, 0.0), UTC)
        return f"waiting for {self.what} since {since:%Y-%m-%d %H:%M:%S} UTC: {self.advice}"


def absence(device: DeviceSpec, workers: Sequence[Worker], since: float = 0.0) -> Missing:
    """For a device that none of the workers takes work for; keys have waited for one since `since`."""
    known = [worker for worker in workers if worker.target == target_of(device)]
    since = max([since, *(worker.seen_at for worker in known if worker.fit is False)])
    unfit = next((worker for worker in known if worker.alive and worker.unfit), None)
    other = next((worker for worker in known if worker.fit and worker.release != this_release()), None)
    last = max(known, key=lambda worker: worker.seen_at, default=None)
    if other is not None:
        return Missing(
            what=f"a worker for {device.device} of release {this_release()}", since=since,
            advice=f"needs worker release {this_release()}, worker {other.name} is of release "
            f"{other.release or 'unknown'}: upgrade it",
        )  # fmt: skip
    if unfit is not None:
        return Missing(
            what=f"a worker for {device.device} that takes work", since=since, advice=f"{unfit.name}: {unfit.unfit}"
        )
    ended = f"the last one, {last.name}, ended: {last.unfit}; " if last is not None and last.unfit else ""
    return Missing(what=f"a worker for {device.device}", since=since, advice=f"{ended}{start_one(device)}")


def start_one(device: DeviceSpec) -> str:
    """What to do about it. Without the address: it may hold a password."""
    return (
        f"start one on a machine with {device.arch or device.device} and {device.cores or 'as many'} cores: "
        f"autotune worker --device {device.device} --db postgresql+psycopg://..."
    )
