"""The later measurements of a candidate are found by an index: pruning looks for them, row by row."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

INDEX = "ix_measurements_key_id_device_id_candidate_measured_at"


def upgrade() -> None:
    op.create_index(INDEX, "measurements", ["key_id", "device_id", "candidate", "measured_at"])


def downgrade() -> None:
    op.drop_index(INDEX, "measurements")
