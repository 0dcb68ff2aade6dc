"""Tokens, by digest; a change of them counts as one of winners does."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER tokens_changed AFTER INSERT OR UPDATE OR DELETE ON tokens "
            "FOR EACH STATEMENT EXECUTE FUNCTION count_change()"
        )
        return
    for event in ("insert", "update", "delete"):
        op.execute(
            f"CREATE TRIGGER tokens_{event}_changed AFTER {event} ON tokens "  # noqa: S608 - names from above
            "BEGIN UPDATE changes SET count = count + 1; END"
        )


def downgrade() -> None:
    op.drop_table("tokens")  # its triggers with it
