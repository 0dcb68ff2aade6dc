"""One row to write to whenever somebody asks whether the database takes writes.

And keys of jobs that have ended have ended, too: 0003 queued those of jobs that were done once more.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "probe",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_probe"),
    )
    op.execute("INSERT INTO probe (id, count) VALUES (1, 0)")
    op.execute(
        "UPDATE job_keys SET state = (SELECT jobs.state FROM jobs WHERE jobs.id = job_keys.job_id) "
        "WHERE state = 'queued' AND job_id IN (SELECT id FROM jobs WHERE state IN ('done', 'failed', 'cancelled'))"
    )


def downgrade() -> None:
    op.drop_table("probe")
