"""What can be wrong with a database. Every message is one line: what was expected, what was found, what to do."""

from __future__ import annotations


class DatabaseError(RuntimeError):
    """The database cannot do what it was asked to; the base of all errors here."""


class DatabaseFromTheFutureError(DatabaseError):
    """A newer release wrote the database. Nothing in it was touched."""


class NotADatabaseError(DatabaseError):
    """The file is no database, or one of another program. Nothing in it was touched."""


class DatabaseUnreachableError(DatabaseError):
    """There is no way to open it for writing: a missing directory, a read-only file, a server that is not there."""


class DatabaseBusyError(DatabaseError):
    """Somebody else held it for longer than we wait. Trying again may help."""


class DatabaseFullError(DatabaseError):
    """Its disk has no room. What was acknowledged is there; there is room again once somebody makes some."""


class StatementRefusedError(DatabaseError):
    """A statement, or a value in it, that the database does not take, or has no rights for. The same again is refused
    again."""


class UnknownWorkerError(LookupError):
    """A worker of that name never registered, or was silent for so long that its row was removed."""
