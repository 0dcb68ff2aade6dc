"""Winners: one current decision per key, former ones kept as history."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, insert, select, update

from autotune import bundle
from autotune.winner import WITHDRAWN_STATES, Winner, WinnerState
from db.codec import MAX_ID, decode, encode, plain
from db.keys import Ids, chunks, keep_keys
from db.models import CURRENT, DeviceRow, KeyRow, WinnerRow
from strategies.key import ConvKey

HELD = (str(WinnerState.PINNED), str(WinnerState.REVOKED))
"""What a person said stays until a person says otherwise."""
WITHDRAWN = tuple(str(state) for state in WITHDRAWN_STATES)
BANNED = str(WinnerState.BANNED)


def decide(connection: Connection, winner: Winner) -> int:
    """Make it current, unless the current one is held. The same decision again changes nothing."""
    body = _body(winner)
    ids = keep_keys(connection, [winner.key])[0]
    _lock(connection, [ids.key])
    same = select(WinnerRow.id).where(WinnerRow.key_id == ids.key, WinnerRow.body == body)
    winner_id = connection.execute(same.order_by(WinnerRow.id.desc()).limit(1)).scalar()
    if winner_id is None:
        statement = insert(WinnerRow).values(_row(winner, ids, body, is_current=False))
        primary_key = connection.execute(statement).inserted_primary_key
        assert primary_key is not None
        winner_id = int(primary_key[0])
    current = select(WinnerRow.state).where(WinnerRow.key_id == ids.key, CURRENT)
    free = connection.execute(current).scalar() not in HELD
    if free and (winner.state is WinnerState.BANNED or not _is_banned(connection, ids.key, winner)):
        _make_current(connection, ids.key, winner_id)
    return winner_id


def winner(connection: Connection, key: ConvKey) -> Winner | None:
    """The current one, whatever its state."""
    query = select(WinnerRow.body).join(KeyRow, KeyRow.id == WinnerRow.key_id)
    body = connection.execute(query.where(KeyRow.digest == key.digest, CURRENT)).scalar()
    return None if body is None else _winner(body)


def winner_by_id(connection: Connection, winner_id: int) -> Winner | None:
    """Any decision, former ones included."""
    if not 0 < winner_id <= MAX_ID:
        return None
    body = connection.execute(select(WinnerRow.body).where(WinnerRow.id == winner_id)).scalar()
    return None if body is None else _winner(body)


def history(connection: Connection, key: ConvKey) -> list[tuple[int, Winner]]:
    """All of a key, latest decision first."""
    query = select(WinnerRow.id, WinnerRow.body).join(KeyRow, KeyRow.id == WinnerRow.key_id)
    query = query.where(KeyRow.digest == key.digest).order_by(WinnerRow.decided_at.desc(), WinnerRow.id.desc())
    return [(winner_id, _winner(body)) for winner_id, body in connection.execute(query)]


def merge(connection: Connection, incoming: Sequence[Winner]) -> int:
    """Keep those that say more than what is there, see `autotune.bundle.merge`; how many. One winner per key."""
    bodies = {winner.key.digest: _body(winner) for winner in incoming}
    ids = dict(zip(bodies, keep_keys(connection, [winner.key for winner in incoming]), strict=True))
    _lock(connection, [row.key for row in ids.values()])  # all of them before the first change: no two wait in a circle
    known = {digest: _winner(body) for digest, body in _current(connection, list(bodies)).items()}
    decided = _decided(connection, [row.key for row in ids.values()])
    chosen = [winner for winner in incoming if bundle.merge(known.get(winner.key.digest), winner) is not None]
    rows = [
        _row(winner, ids[winner.key.digest], bodies[winner.key.digest], is_current=True)
        for winner in chosen if ids[winner.key.digest].key not in decided
    ]  # fmt: skip
    if rows:
        connection.execute(insert(WinnerRow), rows)
    for winner in chosen:
        if ids[winner.key.digest].key in decided:
            decide(connection, winner)
    return len(chosen)


def lookup(connection: Connection, digests: Sequence[str]) -> dict[str, str]:
    """The current ones of many keys as JSON text, withdrawn ones left out."""
    return _current(connection, digests, WinnerRow.state.not_in(WITHDRAWN))


def _current(connection: Connection, digests: Sequence[str], *where: ColumnElement[bool]) -> dict[str, str]:
    query = select(KeyRow.digest, WinnerRow.body).join(KeyRow, KeyRow.id == WinnerRow.key_id)
    query = query.where(CURRENT, *where)
    result: dict[str, str] = {}
    for chunk in chunks(sorted({plain(text) for text in digests})):
        result.update(dict(connection.execute(query.where(KeyRow.digest.in_(chunk))).all()))
    return result


def _decided(connection: Connection, key_ids: Sequence[int]) -> set[int]:
    """Those keys of which there are decisions, former ones included."""
    return {
        key_id for chunk in chunks(sorted(key_ids))
        for key_id in connection.execute(select(WinnerRow.key_id).where(WinnerRow.key_id.in_(chunk))).scalars()
    }  # fmt: skip


def winners(connection: Connection, device: str | None, limit: int, offset: int) -> list[tuple[int, Winner]]:
    """Current ones with their ids, latest decision first."""
    query = select(WinnerRow.id, WinnerRow.body).where(CURRENT)
    if device is not None:
        query = query.join(DeviceRow, DeviceRow.id == WinnerRow.device_id).where(DeviceRow.name == plain(device))
    query = query.order_by(WinnerRow.decided_at.desc(), WinnerRow.id.desc())
    rows = connection.execute(query.limit(min(max(limit, 0), MAX_ID)).offset(min(max(offset, 0), MAX_ID)))
    return [(winner_id, _winner(body)) for winner_id, body in rows]


def set_state(connection: Connection, winner_id: int, state: WinnerState) -> Winner:
    """Change the state. Any state but revoked and banned makes a former decision the current one: a person chose it."""
    known = 0 < winner_id <= MAX_ID
    key_id = connection.execute(select(WinnerRow.key_id).where(WinnerRow.id == winner_id)).scalar() if known else None
    if key_id is None:
        raise LookupError(f"expected the id of a winner, found none with {winner_id}: see `autotune winners --json`")
    _lock(connection, [key_id])
    body = connection.execute(select(WinnerRow.body).where(WinnerRow.id == winner_id)).scalar_one()
    found = dataclasses.replace(_winner(body), state=state)
    changed = update(WinnerRow).where(WinnerRow.id == winner_id)
    connection.execute(changed.values(state=str(state), body=_body(found)))
    if state not in WITHDRAWN_STATES:
        _make_current(connection, key_id, winner_id)
    return found


def _is_banned(connection: Connection, key_id: int, winner: Winner) -> bool:
    candidate = encode(winner.candidate.to_json())
    banned = select(WinnerRow.id).where(WinnerRow.key_id == key_id, WinnerRow.state == BANNED)
    return connection.execute(banned.where(WinnerRow.candidate == candidate).limit(1)).scalar() is not None


def _make_current(connection: Connection, key_id: int, winner_id: int) -> None:
    former = update(WinnerRow).where(WinnerRow.key_id == key_id, CURRENT, WinnerRow.id != winner_id)
    connection.execute(former.values(is_current=False))
    connection.execute(update(WinnerRow).where(WinnerRow.id == winner_id).values(is_current=True))


def _lock(connection: Connection, key_ids: Sequence[int]) -> None:
    """One decision per key at a time, in one order everywhere. (SQLite's writers are alone anyway: nothing to do.)"""
    if connection.dialect.name != "sqlite":
        for chunk in chunks(sorted(key_ids)):
            connection.execute(select(KeyRow.id).where(KeyRow.id.in_(chunk)).order_by(KeyRow.id).with_for_update())


def _row(winner: Winner, ids: Ids, body: str, *, is_current: bool) -> dict[str, object]:
    return {
        "key_id": ids.key, "device_id": ids.device, "is_current": is_current, "state": str(winner.state),
        "decided_at": winner.decided_at, "candidate": encode(winner.candidate.to_json()), "body": body,
    }  # fmt: skip


def _body(winner: Winner) -> str:
    """A winner is handed on as strict JSON, which has no NaN and no infinity."""
    try:
        return encode(winner.to_json(), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"a winner's numbers must be finite: got {error} in the one for {winner.key}") from None


def _winner(body: str) -> Winner:
    return Winner.from_json(decode(body))
