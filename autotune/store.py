"""What `autotune` needs of a store. `db` implements it; tests run every implementation through one contract."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from autotune.job import Budget, Claim, Job, JobState, Submitter, Terms, Waiting
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

        A pinned or revoked winner stays what it is, and a banned candidate does not win: the new one is kept as
        history beside it. The same decision again changes nothing. Raises ValueError for numbers that are not finite.
        """

    def merge(self, incoming: Iterable[Winner]) -> int:
        """Keep each winner that says more than what is there, as `autotune.bundle.merge` has it; how many were kept.

        One winner per key. Thousands at a time are kept together: an end in the middle leaves the first of them.
        """

    def winner(self, key: ConvKey) -> Winner | None:
        """The key's current winner, whatever its state."""

    def winner_by_id(self, winner_id: int) -> Winner | None:
        """Any decision by its id, current or history."""

    def history(self, key: ConvKey) -> list[tuple[int, Winner]]:
        """Every decision made for a key with its id, the current one included, latest first."""

    def lookup(self, digests: Sequence[str]) -> dict[str, Winner]:
        """The current winners of many keys by digest, withdrawn ones left out. Unknown digests are absent."""

    def lookup_json(self, digests: Sequence[str]) -> dict[str, str]:
        """As `lookup`, the winners as strict JSON: to be handed on, much cheaper."""

    def changes(self) -> int:
        """A number that is another one after every change of winners, by whatever process; cheap."""

    @property
    def reads_at_once(self) -> bool:
        """Whether `changes` is so cheap that an event loop may ask."""

    def winners(self, *, device: str | None = None, limit: int = 1000, offset: int = 0) -> list[tuple[int, Winner]]:
        """Current winners with their ids, latest decision first."""

    def set_state(self, winner_id: int, state: WinnerState) -> Winner:
        """Pin, revoke, ban or verify again. Raises LookupError for an unknown id.

        Any state but revoked and banned makes a former decision the key's current winner.
        """

    def submit(
        self, keys: Sequence[ConvKey], budget: Budget, terms: Terms | None = None, *, retry_of: str = "",
        submitter: Submitter | None = None,
    ) -> Job:  # fmt: skip
        """Queue a job. The same set of keys already queued or running returns that job, on the stronger of both terms
        and with the larger of both budgets.

        ValueError without keys, QueueFullError beyond what the submitter may have in the queue."""

    def job(self, job_id: str) -> Job | None:
        """The job of that id, or None."""

    def jobs(self, *, limit: int = 100, offset: int = 0, state: JobState | None = None) -> list[Job]:
        """Latest first."""

    def waiting(self) -> list[Waiting]:
        """What queued keys wait for, by kind of device, who waits longest first."""

    def claim(self, owner: str, *, target: str | None = None, busy: bool = False) -> Claim | None:
        """Take a queued key and mark it running, or None: of the highest priority, then the oldest.

        No two owners get the same key, nor one that another job has running. `target`: only keys for that kind of
        device (`target_of`). `busy`: leave those that wait for an idle device.
        """

    def beat(self, owners: Collection[str]) -> None:
        """Owners live: what they have claimed stays theirs."""

    def recover(self, *, idle_s: float = 0.0) -> int:
        """Put back every running key whose owner has said nothing for `idle_s`; how many there were.

        What a killed service left is put back with 0, where nobody else can be working.
        """

    def expire(self) -> int:
        """End the jobs whose deadline has passed; how many there were."""

    def release(self, claim: Claim) -> None:
        """Put a claimed key back to its place in the queue; no change if it is not the claim's owner's any more."""

    def progress(self, claim: Claim, progress: JsonObject) -> bool:
        """Keep what the search says of itself. False if the key is not its owner's any more (cancelled, put back):
        stop."""

    def finish(self, claim: Claim, error: str = "") -> None:
        """The key is done, or failed with this error; its job ends with its last key. No change if the key is not
        its owner's any more. Raises LookupError for an unknown job."""

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that has not ended. Raises LookupError for an unknown id."""
