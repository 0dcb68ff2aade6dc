"""Roles of a server: what its owner lets the service's and the workers' do (rights.sql)."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

SCRIPT = Path(__file__).with_name("rights.sql")


def grant(connection: Connection) -> None:
    """To those roles that there are. The caller holds the migrations' lock and owns the tables."""
    connection.exec_driver_sql(SCRIPT.read_text(encoding="utf-8").replace("%", "%%"))
