"""The tables. Rows refer to values of `strategies` and `autotune`; what is searched for has a column of its own.

A migration in `db/migrations/versions` goes with every change here; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    ColumnClause,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    false,
    literal_column,
    text,
)  # fmt: skip
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ACTIVE, _CURRENT = text("state IN ('queued', 'running')"), text("is_current")
_QUEUED, _RUNNING = text("state = 'queued'"), text("state = 'running'")
# The same conditions for queries, to the letter: SQLite uses a partial index only where it recognises its condition.
# Without a type: SQLAlchemy would compare a Boolean with 1.
ACTIVE: ColumnClause[bool] = literal_column("jobs.state IN ('queued', 'running')")
KEY_QUEUED: ColumnClause[bool] = literal_column("job_keys.state = 'queued'")
KEY_RUNNING: ColumnClause[bool] = literal_column("job_keys.state = 'running'")
CURRENT: ColumnClause[bool] = literal_column("winners.is_current")


class Base(DeclarativeBase):
    """Constraints are named, so that migrations can refer to them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class DeviceRow(Base):
    """One device in one state of its surroundings: another driver is another row with the same `identity`."""

    __tablename__ = "devices"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(32), unique=True)
    """Over the whole DeviceSpec."""
    identity: Mapped[str] = mapped_column(String(32), index=True)
    """Over the fields in a key's digest."""
    name: Mapped[str] = mapped_column(Text, index=True)
    spec: Mapped[str] = mapped_column(Text)
    """DeviceSpec as JSON."""


class KeyRow(Base):
    """One ConvKey by digest.

    Keys that share a digest may differ in their driver and in how their shape is spelled; so whatever refers to a
    key has the exact one in its own JSON, and what stands here is how it was first seen.
    """

    __tablename__ = "keys"
    __table_args__ = (Index("ix_keys_nearby", "dtype", "kernel", "groups", "cin", "cout"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(32), unique=True)
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id"), index=True)
    shape: Mapped[str] = mapped_column(Text)
    """ConvShape as JSON."""
    policy: Mapped[str] = mapped_column(Text)
    """Policy as JSON."""
    dtype: Mapped[str] = mapped_column(String(16))
    batch: Mapped[int]
    cin: Mapped[int]
    cout: Mapped[int]
    groups: Mapped[int]
    spatial: Mapped[str] = mapped_column(String(64))
    """`56x56`"""
    kernel: Mapped[str] = mapped_column(String(64))
    """`3x3`"""


class MeasurementRow(Base):
    """One attempt at one candidate."""

    __tablename__ = "measurements"
    __table_args__ = (
        Index("ix_measurements_key_id_measured_at", "key_id", "measured_at"),
        # For pruning, which asks of each measurement for later ones: without it, time in the square of a key's.
        Index(
            "ix_measurements_key_id_device_id_candidate_measured_at", "key_id", "device_id", "candidate", "measured_at"
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[str] = mapped_column(Text, unique=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("keys.id"))
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id"))
    status: Mapped[str] = mapped_column(String(16))
    candidate: Mapped[str] = mapped_column(String(16))
    """The candidate's digest."""
    measured_at: Mapped[float] = mapped_column(Float)
    body: Mapped[str] = mapped_column(Text)
    """Measurement as JSON, whole."""


class WinnerRow(Base):
    """One decision. Former ones are history; one per key is current."""

    __tablename__ = "winners"
    __table_args__ = (
        Index("uq_winners_current", "key_id", unique=True, sqlite_where=_CURRENT, postgresql_where=_CURRENT),
        Index("ix_winners_latest", "decided_at", "id", sqlite_where=_CURRENT, postgresql_where=_CURRENT),
        {"sqlite_autoincrement": True},  # ids are public: never given twice
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("keys.id"), index=True)
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id"))
    is_current: Mapped[bool]
    state: Mapped[str] = mapped_column(String(16))
    decided_at: Mapped[float] = mapped_column(Float)
    candidate: Mapped[str] = mapped_column(Text)
    """Candidate as JSON."""
    body: Mapped[str] = mapped_column(Text)
    """Winner as JSON, whole, its state included: `lookup_v1` hands it out."""


class JobRow(Base):
    """One request to tune. `id` is the order of submission, `name` what the outside calls it."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("uq_jobs_active", "keys_digest", unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(32), unique=True)
    keys_digest: Mapped[str] = mapped_column(String(32))
    """Over the set of the keys' digests: two active jobs never share it."""
    state: Mapped[str] = mapped_column(String(16), index=True)
    budget: Mapped[str] = mapped_column(Text)
    done_keys: Mapped[int]
    progress: Mapped[str] = mapped_column(Text)
    error: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    priority: Mapped[int] = mapped_column(server_default="0")
    deadline: Mapped[float | None] = mapped_column(Float)
    idle: Mapped[bool] = mapped_column(server_default=false())
    retry_of: Mapped[str] = mapped_column(Text, server_default=text("''"))
    submitter: Mapped[str] = mapped_column(Text, server_default=text("''"))
    """For whom: a token's id, or empty where none is needed."""


class JobKeyRow(Base):
    """A job's keys, in order: the unit of work. One that is running belongs to its owner, who is heard of at least
    every few seconds; else it is put back."""

    __tablename__ = "job_keys"
    __table_args__ = (
        Index("ix_job_keys_queued", "target", "job_id", "position", sqlite_where=_QUEUED, postgresql_where=_QUEUED),
        Index("ix_job_keys_running", "owner", sqlite_where=_RUNNING, postgresql_where=_RUNNING),
    )

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    key_id: Mapped[int] = mapped_column(ForeignKey("keys.id"), index=True)
    body: Mapped[str] = mapped_column(Text)
    """ConvKey as JSON, as it was asked for."""
    target: Mapped[str] = mapped_column(String(16), server_default=text("''"))
    """The kind of device it is for: `autotune.job.target_of`."""
    state: Mapped[str] = mapped_column(String(16), server_default="queued")
    owner: Mapped[str] = mapped_column(Text, server_default=text("''"))
    """Who claimed it last."""
    error: Mapped[str] = mapped_column(Text, server_default=text("''"))
    seen_at: Mapped[float | None] = mapped_column(Float)
    """When its owner was last heard of."""


class ChangeRow(Base):
    """One row: how often winners and tokens have changed. Triggers count, whoever writes."""

    __tablename__ = "changes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)


class ProbeRow(Base):
    """One row: how often somebody tried whether anything can be written."""

    __tablename__ = "probe"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)


class TokenRow(Base):
    """One token, which ids name for good: former ones stay."""

    __tablename__ = "tokens"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the secret."""
    scope: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class WorkerRow(Base):
    """A process that measures on one device; it stays here after its end, as a record of where measurements came
    from."""

    __tablename__ = "workers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    device: Mapped[str] = mapped_column(Text)
    """DeviceSpec as JSON."""
    about: Mapped[str] = mapped_column(Text)
    in_use: Mapped[bool]
    unfit: Mapped[str] = mapped_column(Text, server_default=text("''"))
    """Why it takes no more work; empty while it does."""
    started_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float] = mapped_column(Float, index=True)
    ended_at: Mapped[float | None] = mapped_column(Float)


class TaskRow(Base):
    """One request to measure, for a worker. The queue (procrastinate) only carries its name and attempt."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("uq_tasks_active", "digest", unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
        Index("ix_tasks_changed_at", "changed_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(32), unique=True)
    queue: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(32))
    """Over queue and request: asked for twice, by a service that was killed and its successor, it is measured once."""
    request: Mapped[str] = mapped_column(Text)
    """Request as JSON."""
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    worker: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    changed_at: Mapped[float] = mapped_column(Float)
    key_digest: Mapped[str] = mapped_column(String(32), server_default=text("''"))
    """Of the key it asks about: a worker's role may record measurements of this one alone."""
    idle: Mapped[bool] = mapped_column(server_default=false())
    """Only a worker whose device no program uses may begin it."""
    release: Mapped[str] = mapped_column(Text, server_default=text("''"))
    """Of the service that asks."""
    waiting: Mapped[str] = mapped_column(Text, server_default=text("''"))
    """Why the worker that was offered it did not take it."""
    lost: Mapped[str] = mapped_column(Text, server_default=text("'[]'"))
    """Who had it and fell silent: a JSON list of [worker, when it was taken from it]."""


class AttemptRow(Base):
    """What one worker made of one attempt at a task. One that is not `counted` came too late: it is evidence."""

    __tablename__ = "attempts"

    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(Text)
    counted: Mapped[bool]
    result: Mapped[str] = mapped_column(Text)
    """Measurements as a JSON list."""
    error: Mapped[str] = mapped_column(Text)
    ended_at: Mapped[float] = mapped_column(Float)
