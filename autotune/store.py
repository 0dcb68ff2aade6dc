"""What `autotune` needs of a store. `db` implements it; tests run every implementation through one contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from autotune.job import Budget, Job
from autotune.measurement import Measurement
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey
from strategies.shape import JsonObject


class Store(Protocol):
    """Durable memory of measurements, winners and jobs.

    Every method may be called from several threads and processes at once. A method that returns has made its
    effect durable: a `kill -9` right after it loses nothing. Reads see everything acknowledged before they began.
    """

    def record(self, measurement: Measurement) -> bool:
        """Keep a measurement. False, and no change, if its `attempt` is known already."""

    def measurements(self, key: ConvKey) -> list[Measurement]:
        """Everything measured for a key, oldest first."""

    def decide(self, winner: Winner) -> int:
        """Make this the key's winner and return its id; the former one is kept as history.

        A pinned or revoked winner stays what it is: the new one is kept as history beside it.
        """

    def winner(self, key: ConvKey) -> Winner | None:
        """The key's current winner, whatever its state."""

    def lookup(self, digests: Sequence[str]) -> dict[str, Winner]:
        """The current winners of many keys by digest, revoked ones left out. Unknown digests are absent."""

    def winners(self, *, device: str | None = None, limit: int = 1000, offset: int = 0) -> list[tuple[int, Winner]]:
        """Current winners with their ids, latest decision first."""

    def set_state(self, winner_id: int, state: WinnerState) -> Winner:
        """Pin, revoke or verify again. Raises LookupError for an unknown id."""

    def submit(self, keys: Sequence[ConvKey], budget: Budget) -> Job:
        """Queue a job. The same set of keys already queued or running returns that job."""

    def job(self, job_id: str) -> Job | None: ...

    def jobs(self, *, limit: int = 100, offset: int = 0) -> list[Job]:
        """Latest first."""

    def claim(self, owner: str) -> Job | None:
        """Take the oldest queued job and mark it running, or None. No two owners get the same job."""

    def unfinished(self) -> Iterable[Job]:
        """Jobs left running, as after a kill: `requeue` puts them back."""

    def requeue(self, job_id: str) -> None: ...

    def progress(self, job_id: str, done_keys: int, progress: JsonObject) -> bool:
        """Keep what the search says of itself. False if the job was cancelled meanwhile: stop."""

    def finish(self, job_id: str, error: str = "") -> None:
        """Done, or failed with this error. A cancelled job stays cancelled."""

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that has not ended. Raises LookupError for an unknown id."""
