"""The database of the settings, opened."""

from __future__ import annotations

import os
from pathlib import Path

from api.settings import Settings, default_database
from db import SqlStore, open_store


def open_database(settings: Settings) -> SqlStore:
    """Raises DatabaseError. Only the default place is made if it is missing: another is taken for a typing error."""
    if settings.db == str(default_database(os.environ)):
        Path(settings.db).parent.mkdir(parents=True, exist_ok=True)
    return open_store(settings.db)
