"""What is known: measurements, winners and jobs in SQLite or PostgreSQL. `open_store` is the way in."""

from __future__ import annotations

from db.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseFromTheFutureError,
    DatabaseUnreachableError,
    NotADatabaseError,
    StatementRefusedError,
    UnknownWorkerError,
)
from db.store import SqlStore, open_store
from db.tokens import Scope, Token

__all__ = [
    "DatabaseBusyError", "DatabaseError", "DatabaseFromTheFutureError", "DatabaseUnreachableError",
    "NotADatabaseError", "Scope", "SqlStore", "StatementRefusedError", "Token", "UnknownWorkerError", "open_store",
]  # fmt: skip
