"""Whether the database takes writes, found out by one.

Nothing less tells: a statement that matches no row writes nothing, and neither does SQLite where a value stays what it
was; what is rolled back never has to reach the disk, so that a full one is not noticed. So one row is changed and
committed. It has a table to itself, as nobody else may wait for its lock. On PostgreSQL no index is on what changes:
the new version of the row lies beside the old one, whose place is used again, and the table keeps its one page.
"""

from __future__ import annotations

from sqlalchemy import Connection, update

from db.address import insert_new
from db.models import ProbeRow

ROW = 1


def write(connection: Connection) -> None:
    """Change the row; made anew where somebody removed it. Whether it holds, the commit says."""
    changed = update(ProbeRow).where(ProbeRow.id == ROW).values(count=ProbeRow.count + 1)
    if connection.execute(changed).rowcount == 0:
        insert_new(connection, ProbeRow, id=ROW, count=1)
