"""Tokens: who may ask for what beyond loopback. Only a digest of a token is kept; it is shown once, when made."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, insert, select, update

from db.codec import MAX_ID, plain
from db.models import TokenRow

PREFIX = "autotune_"
"""So that whoever finds one in a log or a commit, person or program, knows what it is."""
SECRET_BYTES = 32
MAX_NAME = 100


class Scope(StrEnum):
    """What a token is good for. Each covers those before it."""

    READ = "read"  # see winners, jobs, devices
    TUNE = "tune"  # make and cancel jobs: whatever costs machine time
    ADMIN = "admin"  # pin, revoke and import winners: whatever changes what others run

    def covers(self, other: Scope) -> bool:
        """Whether this one is enough where `other` is asked for."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token without its secret. Times are in seconds since the epoch."""

    id: int
    name: str
    scope: Scope
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def holds(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def create(connection: Connection, name: str, scope: Scope, expires_at: float | None, now: float) -> tuple[Token, str]:
    """A new token and its secret. Raises ValueError for a name that is none."""
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        raise ValueError(f"expected a name of 1 to {MAX_NAME} printable characters, found {name[:40]!r}")
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    values = {"name": plain(name), "scope": str(scope), "created_at": now, "expires_at": expires_at}
    made = connection.execute(insert(TokenRow).values(digest=digest(secret), **values)).inserted_primary_key
    assert made is not None
    return _token(connection, int(made[0])), secret


def tokens(connection: Connection) -> list[Token]:
    """All that were ever made, oldest first."""
    return [_of(row) for row in connection.execute(select(TokenRow.__table__).order_by(TokenRow.id))]


def token(connection: Connection, secret_digest: str) -> Token | None:
    """The one with that digest, whether it holds or not."""
    row = connection.execute(select(TokenRow.__table__).where(TokenRow.digest == secret_digest)).one_or_none()
    return None if row is None else _of(row)


def revoke(connection: Connection, token_id: int, now: float) -> Token:
    """Withdraw it for good; one that was stays as it was. Raises LookupError for an unknown id."""
    known = 0 < token_id <= MAX_ID
    held = update(TokenRow).where(TokenRow.id == token_id, TokenRow.revoked_at.is_(None))
    if known:
        connection.execute(held.values(revoked_at=now))
    if not known or not connection.execute(select(TokenRow.id).where(TokenRow.id == token_id)).all():
        raise LookupError(f"expected the id of a token, found none with {token_id}: see `autotune token list`")
    return _token(connection, token_id)


def digest(secret: str) -> str:
    """What is kept. One round is enough: a secret has 256 random bits, which nobody guesses."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _token(connection: Connection, token_id: int) -> Token:
    return _of(connection.execute(select(TokenRow.__table__).where(TokenRow.id == token_id)).one())


def _of(row: object) -> Token:
    fields = ("id", "name", "created_at", "expires_at", "revoked_at")
    return Token(scope=Scope(getattr(row, "scope")), **{field: getattr(row, field) for field in fields})  # noqa: B009
