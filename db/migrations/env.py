"""Alembic's entry: runs on the connection, and in the transaction, that `db.migrate` hands in."""

from __future__ import annotations

from alembic import context

from db.models import Base

connection = context.config.attributes["connection"]
# SQLite's DDL is transactional as PostgreSQL's is; Alembic assumes the contrary.
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
