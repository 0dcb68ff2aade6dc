"""The first schema: devices, keys, measurements, winners, jobs; and the view that the runtime hook reads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

LOOKUP = """
CREATE VIEW lookup_v1 AS
SELECT keys.digest AS key_digest, winners.state AS state, winners.candidate AS candidate,
       winners.body AS winner, winners.decided_at AS decided_at
FROM winners JOIN keys ON keys.id = winners.key_id
WHERE winners.is_current
"""


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("identity", sa.String(32), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("digest", name="uq_devices_digest"),
    )
    op.create_index("ix_devices_identity", "devices", ["identity"])
    op.create_index("ix_devices_name", "devices", ["name"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("device_id", sa.Integer, nullable=False),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("dtype", sa.String(16), nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("cin", sa.Integer, nullable=False),
        sa.Column("cout", sa.Integer, nullable=False),
        sa.Column("groups", sa.Integer, nullable=False),
        sa.Column("spatial", sa.String(64), nullable=False),
        sa.Column("kernel", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.UniqueConstraint("digest", name="uq_keys_digest"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_keys_device_id"),
    )
    op.create_index("ix_keys_device_id", "keys", ["device_id"])
    op.create_index("ix_keys_nearby", "keys", ["dtype", "kernel", "groups", "cin", "cout"])
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Text, nullable=False),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("device_id", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("candidate", sa.String(16), nullable=False),
        sa.Column("measured_at", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
        sa.UniqueConstraint("attempt", name="uq_measurements_attempt"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_measurements_key_id"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_measurements_device_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_measurements_key_id_measured_at", "measurements", ["key_id", "measured_at"])
    op.create_table(
        "winners",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("device_id", sa.Integer, nullable=False),
        sa.Column("is_current", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("decided_at", sa.Float, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_winners"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_winners_key_id"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_winners_device_id"),
        sqlite_autoincrement=True,
    )
    current = sa.text("is_current")
    op.create_index(
        "uq_winners_current", "winners", ["key_id"], unique=True, sqlite_where=current, postgresql_where=current
    )
    op.create_index("ix_winners_key_id", "winners", ["key_id"])
    op.create_index(
        "ix_winners_latest", "winners", ["decided_at", "id"], sqlite_where=current, postgresql_where=current
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("keys_digest", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("budget", sa.Text, nullable=False),
        sa.Column("done_keys", sa.Integer, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("seen_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("name", name="uq_jobs_name"),
        sqlite_autoincrement=True,
    )
    active = sa.text("state IN ('queued', 'running')")
    op.create_index(
        "uq_jobs_active", "jobs", ["keys_digest"], unique=True, sqlite_where=active, postgresql_where=active
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "job_keys",
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "position", name="pk_job_keys"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_keys_job_id"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_job_keys_key_id"),
    )
    op.create_index("ix_job_keys_key_id", "job_keys", ["key_id"])
    op.execute(LOOKUP)


def downgrade() -> None:
    op.execute("DROP VIEW lookup_v1")
    for table in ("job_keys", "jobs", "winners", "measurements", "keys", "devices"):
        op.drop_table(table)
