"""Each key of a job is claimed, heard of and ended by itself; priorities and deadlines of jobs."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from autotune.job import target_of
from strategies.key import DeviceSpec

revision = "0003"
down_revision = "0002"

CHUNK = 1000


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("deadline", sa.Float))
    op.add_column("jobs", sa.Column("idle", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("retry_of", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("job_keys", sa.Column("target", sa.String(16), nullable=False, server_default=sa.text("''")))
    op.add_column("job_keys", sa.Column("state", sa.String(16), nullable=False, server_default="queued"))
    op.add_column("job_keys", sa.Column("owner", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("job_keys", sa.Column("error", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("job_keys", sa.Column("seen_at", sa.Float))
    op.execute(
        "UPDATE job_keys SET state = (SELECT CASE WHEN job_keys.position < jobs.done_keys THEN 'done' "
        "WHEN jobs.state IN ('done', 'failed', 'cancelled') THEN jobs.state ELSE 'queued' END "
        "FROM jobs WHERE jobs.id = job_keys.job_id)"
    )
    op.execute("UPDATE jobs SET state = 'queued', started_at = NULL WHERE state = 'running'")
    _fill_targets()
    queued, running = sa.text("state = 'queued'"), sa.text("state = 'running'")
    op.create_index(
        "ix_job_keys_queued", "job_keys", ["target", "job_id", "position"], sqlite_where=queued, postgresql_where=queued
    )
    op.create_index("ix_job_keys_running", "job_keys", ["owner"], sqlite_where=running, postgresql_where=running)
    op.drop_column("jobs", "owner")
    op.drop_column("jobs", "seen_at")


def downgrade() -> None:
    op.add_column("jobs", sa.Column("owner", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("jobs", sa.Column("seen_at", sa.Float))
    # Older releases go on behind the first `done_keys` keys: what ended after one that has not, they tune once more.
    op.execute(
        "UPDATE jobs SET done_keys = coalesce((SELECT min(position) FROM job_keys WHERE job_keys.job_id = jobs.id "
        "AND job_keys.state IN ('queued', 'running')), done_keys) WHERE state IN ('queued', 'running')"
    )
    op.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
    op.drop_index("ix_job_keys_running", "job_keys")
    op.drop_index("ix_job_keys_queued", "job_keys")
    for column in ("seen_at", "error", "owner", "state", "target"):
        op.drop_column("job_keys", column)
    for column in ("retry_of", "idle", "deadline", "priority"):
        op.drop_column("jobs", column)


def _fill_targets() -> None:
    """A digest, which SQL cannot compute: of active jobs, the only ones that still need one."""
    connection = op.get_bind()
    table = sa.table("job_keys", *(sa.column(name) for name in ("job_id", "position", "body", "target", "state")))
    rows = connection.execute(sa.select(table).where(table.c.state == "queued")).all()
    change = sa.update(table).where(
        table.c.job_id == sa.bindparam("at_job"), table.c.position == sa.bindparam("at_position")
    )
    change = change.values(target=sa.bindparam("to"))
    values = [
        {
            "at_job": row.job_id,
            "at_position": row.position,
            "to": target_of(DeviceSpec.from_json(json.loads(row.body)["device"])),
        }
        for row in rows
    ]
    for start in range(0, len(values), CHUNK):
        connection.execute(change, values[start : start + CHUNK])
