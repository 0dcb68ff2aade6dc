"""Keeping a database and what is in it: pin, revoke, ban, restore, backup, prune; bundles of many machines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from databases import new_database
from served import key_of, served, winner_of
from values import a_key, a_measurement, a_winner

from api.cli import main
from autotune.winner import WinnerState
from db import DatabaseError, open_store


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "autotune.db"
    monkeypatch.setenv("AUTOTUNE_DB", str(path))
    monkeypatch.delenv("AUTOTUNE_URL", raising=False)
    return path


@pytest.mark.parametrize(
    ("action", "state"), [("pin", "pinned"), ("revoke", "revoked"), ("ban", "banned"), ("restore", "verified")]
)
def test_a_person_decides(database: Path, capsys: pytest.CaptureFixture[str], action: str, state: str) -> None:
    with open_store(database) as store:
        ids = [str(store.decide(a_winner(a_key(cout)))) for cout in (1, 2)]
    assert main([action, *ids, "--json"]) == 0
    assert [item["state"] for item in json.loads(capsys.readouterr().out)["winners"]] == [state] * 2
    with open_store(database) as store:
        assert {winner.state for _, winner in store.winners()} == {WinnerState(state)}
    assert main([action, "99"]) == 1
    assert "found none with 99" in capsys.readouterr().err
    assert main([action, "seven"]) == 2


def test_a_person_decides_through_the_service(
    database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(database) as store:
        number = store.decide(winner_of(key_of()))
    with served(database) as service:
        monkeypatch.setenv("AUTOTUNE_URL", service.url)
        assert main(["ban", str(number)]) == 0
        assert "is banned" in capsys.readouterr().out
        answer = service.http.get("/lookup?input=1x64x56x56&weight=64x64x3x3&padding=1")
        assert (answer.status_code, "was banned" in answer.json()["detail"]) == (404, True)
        assert main(["pin", "99"]) == 1
        assert "no winner 99" in capsys.readouterr().err


def test_a_backup_while_serving(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.db"
    with served(database) as service:
        service.http.post("/tune", json={"input": [1, 8, 8, 8], "weight": [8, 8, 3, 3], "device": "CPU"})
        assert main(["backup", str(copy), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["file"], said["bytes"]) == (str(copy), copy.stat().st_size)
        assert main(["backup", str(copy)]) == 1
    with open_store(copy) as store:
        assert store.check() == []
        assert store.counts()["jobs"] == 1


def test_a_backup_of_postgresql_can_be_restored(tmp_path: Path) -> None:
    with new_database("postgresql", tmp_path) as address, new_database("postgresql", tmp_path) as other:
        copy = tmp_path / "copy.dump"
        with open_store(address) as store:
            store.decide(a_winner())
            store.backup(copy)
            store.decide(a_winner(a_key(8)))
            with pytest.raises(DatabaseError, match="found a file: name another"):
                store.backup(copy)
            with pytest.raises(DatabaseError, match="expected pg_dump to copy"):
                store.backup(tmp_path / "missing" / "copy.dump")
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_restore"))
        target = other.replace("postgresql+psycopg", "postgresql")
        subprocess.run([programs[-1], "--no-owner", f"--dbname={target}", copy], check=True)
        with open_store(other) as store:
            assert [winner for _, winner in store.winners()] == [a_winner()]
            assert store.lookup([a_key().digest]) == {a_key().digest: a_winner()}


def test_old_measurements_are_removed(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(database) as store:
        for number in range(3):
            store.record(a_measurement(str(number), measured_at=float(number)))
    assert main(["prune", "--older-than", "1y", "--dry-run"]) == 0
    assert "2 measurements, 0 former winners, 0 jobs, 0 tasks and 0 workers would be removed" in capsys.readouterr().out
    assert main(["prune", "--older-than", "1y", "--json"]) == 0
    gone = {"measurements": 2, "winners": 0, "jobs": 0, "tasks": 0, "workers": 0}
    assert json.loads(capsys.readouterr().out) == {"dry_run": False, **gone}
    assert main(["prune", "--older-than", "soon"]) == 2


def test_bundles_of_many_machines_are_merged_by_key(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "team.key"
    key.write_text("0123456789abcdef" * 4)
    files = []
    for number, decided_at in enumerate((3.0, 9.0, 6.0)):
        machine, file = str(tmp_path / f"{number}.db"), str(tmp_path / f"{number}.json")
        with open_store(machine) as store:
            store.decide(a_winner(decided_at=decided_at))
            store.decide(a_winner(a_key(100 + number)))
        assert main(["export", file, "--db", machine, "--key", str(key)]) == 0
        files.append(file)
    capsys.readouterr()
    assert main(["import", *files, "--key", str(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"imported": 5, "kept": 1}
    with open_store(database) as store:
        assert store.winner(a_key()) == a_winner(decided_at=9.0)  # its provenance as well
        assert len(store.winners()) == 4
    assert main(["export", files[0], "--db", str(database)]) == 0
    assert main(["import", *files, "--key", str(key)]) == 1
    assert f"{files[0]}: expected a signed bundle" in capsys.readouterr().err


def test_a_service_with_a_key_takes_only_what_is_signed(database: Path, tmp_path: Path) -> None:
    from autotune.bundle import dump

    key = tmp_path / "team.key"
    key.write_text("0123456789abcdef" * 4)
    with served(database, bundle_key=str(key)) as service:
        for sent, status in ((dump([a_winner()]), 422), (dump([a_winner()], key=key.read_bytes()), 200)):
            answer = service.http.post("/import", content=sent, headers={"Content-Type": "application/json"})
            assert answer.status_code == status
