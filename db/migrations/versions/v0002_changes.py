"""A counter of changes: what is remembered of winners holds for as long as it stands still.

Triggers count, so that no writer can forget to: not an older release beside this one, not a person with a SQL shell.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

COUNTED = ("winners",)


def upgrade() -> None:
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
    )
    op.execute("INSERT INTO changes (id, count) VALUES (1, 0)")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN UPDATE changes SET count = count + 1; RETURN NULL; END $$"
        )
    for table in COUNTED:
        count_changes(table)


def downgrade() -> None:
    for table in COUNTED:
        count_no_changes(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION count_change")
    op.drop_table("changes")


def count_changes(table: str) -> None:
    """Let every statement that changes rows of `table` count."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE TRIGGER {table}_changed AFTER INSERT OR UPDATE OR DELETE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION count_change()"
        )
        return
    for event in ("insert", "update", "delete"):
        trigger = f"CREATE TRIGGER {table}_{event}_changed AFTER {event} ON {table}"
        op.execute(f"{trigger} BEGIN UPDATE changes SET count = count + 1; END")  # noqa: S608 - names from above


def count_no_changes(table: str) -> None:
    """The inverse."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP TRIGGER {table}_changed ON {table}")
        return
    for event in ("insert", "update", "delete"):
        op.execute(f"DROP TRIGGER {table}_{event}_changed")
