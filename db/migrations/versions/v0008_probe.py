"""One row to write to whenever somebody asks whether the database takes writes."""

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


def downgrade() -> None:
    op.drop_table("probe")
