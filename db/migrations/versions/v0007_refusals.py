"""Why workers refuse, are lost or are unfit; what only an idle device may take; old tasks are found by their time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("workers", sa.Column("unfit", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("tasks", sa.Column("key_digest", sa.String(32), nullable=False, server_default=sa.text("''")))
    op.add_column("tasks", sa.Column("idle", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("tasks", sa.Column("release", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("tasks", sa.Column("waiting", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("tasks", sa.Column("lost", sa.Text, nullable=False, server_default=sa.text("'[]'")))
    op.create_index("ix_tasks_changed_at", "tasks", ["changed_at"])


def downgrade() -> None:
    op.execute("UPDATE tasks SET state = 'cancelled' WHERE state = 'lost'")
    op.drop_index("ix_tasks_changed_at", "tasks")
    for column in ("lost", "waiting", "release", "idle", "key_digest"):
        op.drop_column("tasks", column)
    op.drop_column("workers", "unfit")
