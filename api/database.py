"""The database of the settings, opened."""

from __future__ import annotations

import os
from pathlib import Path

from api.settings import Settings, default_database
from db import DatabaseUnreachableError, SqlStore, open_store


def open_database(settings: Settings) -> SqlStore:
    """Raises DatabaseError."""
    make_place(settings)
    return open_store(settings.db)


def make_place(settings: Settings) -> None:
    """Only the default one is made if it is missing: another is taken for a typing error. Raises DatabaseError."""
    if settings.db == str(default_database(os.environ)):
        parent = Path(settings.db).parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnreachableError(
                f"expected to make {parent} for the database, found: {error.strerror}; name a database elsewhere with "
                "--db or AUTOTUNE_DB, or set XDG_DATA_HOME, and XDG_CACHE_HOME for what tinygrad compiles"
            ) from None
