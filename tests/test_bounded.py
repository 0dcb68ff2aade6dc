"""What is asked again and again, by whoever watches, costs what is at work now, however much there ever was."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from runner_contract import FINE, request
from served import CPU, Served, body, key_of, served, winner_of
from sqlalchemy import event

from api.metrics import Metrics
from autotune.bundle import load
from autotune.fleet import Worker
from autotune.job import Budget, JobState, target_of
from db import Scope, SqlStore, open_store
from db.lists import FIRST_KEYS
from tests.databases import KINDS, new_database

BUDGET = Budget(trials=3)
KEYS = [key_of(cin) for cin in range(20, 60)]
ACTIVE_ONLY = ("uq_jobs_active", "ix_job_keys_queued", "ix_job_keys_running")
"""Indexes of what is queued or running: to go through one of them costs no more than that."""


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    """One job that waits, one of which a key runs, and one that was cancelled."""
    with new_database(request.param, tmp_path) as address, open_store(address) as store:
        store.cancel(store.submit(KEYS[:3], BUDGET).id)
        store.submit(KEYS, BUDGET)
        store.submit(KEYS[:2], BUDGET)
        store.claim("me")
        yield store


def test_a_list_of_jobs_has_their_first_keys(store: SqlStore) -> None:
    whole, listed = store.jobs(), store.listed_jobs()
    assert [(job.id, job.state, job.total_keys) for job in listed] == [(j.id, j.state, len(j.keys)) for j in whole]
    for job, other in zip(listed, whole, strict=True):
        assert job.keys == other.keys[:FIRST_KEYS]
        assert job.states == other.states[:FIRST_KEYS]
        assert (job.waiting_devices() == other.waiting_devices()) or job.state is not JobState.QUEUED
    assert store.listed_jobs(state=JobState.CANCELLED) == [listed[-1]]
    assert store.listed_jobs(limit=1, offset=1) == [listed[1]]
    assert store.listed_job(listed[1].id) == listed[1]
    assert store.listed_job("nobody") is None


def test_figures(store: SqlStore) -> None:
    figures = store.figures()
    assert figures.jobs == {"queued": 1, "running": 1, "done": 0, "failed": 0, "cancelled": 1}
    assert store.active_jobs() == {"queued": 1, "running": 1}
    [queue] = figures.queues
    assert (queue.device, queue.queued, queue.running) == ("CPU", 41, 1)
    assert queue.since is not None
    assert 0 <= figures.now - queue.since < 60
    assert figures.rows["jobs"] == 3
    assert figures.attempts == {"counted": 0, "failed": 0, "late": 0, "lost": 0}
    assert figures.revision == store.revision()
    assert figures.pool["in_use"] >= 1


def test_a_key_and_its_winner_by_digest(store: SqlStore) -> None:
    assert store.key(KEYS[0].digest) == KEYS[0]
    assert store.key("nobody") is None
    assert store.current_winner(KEYS[0].digest) is None
    winner = winner_of(KEYS[0])
    winner_id = store.decide(winner)
    assert store.current_winner(KEYS[0].digest) == (winner_id, winner)


def test_no_query_goes_through_history(tmp_path: Path) -> None:
    """By SQLite's own account of how it would answer each."""
    statements: list[tuple[str, Any]] = []
    with open_store(tmp_path / "a.db") as store:
        store.submit(KEYS, BUDGET)
        store.claim("me")

        def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
            statements.append((statement, parameters))

        event.listen(store._engine, "before_cursor_execute", note)
        store.figures()
        store.active_jobs()
        store.listed_jobs()
        store.listed_jobs(state=JobState.QUEUED)
        store.listed_job(store.listed_jobs()[0].id)
        store.current_winner(KEYS[0].digest)
        store.key(KEYS[0].digest)
        event.remove(store._engine, "before_cursor_execute", note)
        with store._engine.connect() as connection:
            plans = {
                (statement, step[3])
                for statement, parameters in statements if statement.lstrip().startswith("SELECT")
                for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            }  # fmt: skip
    assert len(statements) > 20
    bad = [
        (step, statement) for statement, step in plans
        if (found := re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", step))
        and found[1] not in ("alembic_version", "sqlite_master") and "max(" not in statement
        and found[2] not in ACTIVE_ONLY and "LIMIT" not in statement
    ]  # fmt: skip
    assert bad == []


def test_kinds_of_devices_cost_no_queries_and_few_labels(store: SqlStore) -> None:
    """Callers name them."""
    statements: list[str] = []
    many = [replace(key, device=replace(CPU, arch=f"a{number}")) for number, key in enumerate(KEYS * 3)]
    store.submit(many, BUDGET)
    event.listen(store._engine, "before_cursor_execute", lambda *said: statements.append(said[2]))
    expected = sorted((key.device for key in many), key=target_of)
    assert [item.device for item in store.waiting()] == [CPU, *expected]
    assert len(statements) <= 3  # one, and those of its transaction
    text = generate_latest(Metrics(store, workers=list, lost=dict).registry).decode()
    assert text.count('state="queued",target=') == 51
    assert f'device="CPU",state="queued",target="{target_of(CPU)}"}} 41.0' in text
    assert f'device="other",state="queued",target="other"}} {len(many) - 49}.0' in text
    assert 'autotune_queue_oldest_seconds{device="other",target="other"}' in text


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    database = tmp_path_factory.mktemp("bounded") / "autotune.db"
    with open_store(database) as store:
        secrets = [store.create_token(name, Scope.TUNE)[1] for name in ("one", "two")]
    with served(database, trial_s=1.0, hosts=["autotune.test"], max_streams=3, max_batch=5) as running:
        running.http.headers["Authorization"] = f"Bearer {secrets[0]}"
        running.log.insert(0, secrets[1])
        yield running


def test_event_streams_have_a_limit_for_each_token(service: Served) -> None:
    job = service.http.post("/tune", json={"shapes": [body(cin) for cin in range(1, 5)], "trials": 50}).json()
    assert (job["name"], job["total_keys"]) == ("4 shapes", 4)
    path = f"/jobs/{job['id']}/events"
    streams = [service.http.stream("GET", url) for url in (path, path, "/dashboard/events")]
    for stream in streams:
        assert stream.__enter__().status_code == 200
    for url in (path, "/dashboard/events"):
        refused = service.http.get(url)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    other = {"Authorization": f"Bearer {service.log[0]}"}
    with service.http.stream("GET", path, headers=other) as stream:
        line = next(line for line in stream.iter_lines() if line.startswith("data:"))
        assert json.loads(line[5:])["total_keys"] == 4
    assert "autotune_streams 3" in service.http.get("/metrics").text
    for stream in streams:
        stream.__exit__(None, None, None)
    assert service.http.delete(f"/jobs/{job['id']}").json()["state"] == "cancelled"


def test_event_streams_leave_connections_to_others(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        secrets = [store.create_token(name, Scope.READ)[1] for name in ("one", "two", "three")]
    with served(tmp_path / "a.db", hosts=["autotune.test"]) as own, ExitStack() as stack:
        address = ("127.0.0.1", int(own.url.rpartition(":")[2]))

        def status(secret: str) -> bytes:
            stream = stack.enter_context(socket.create_connection(address, timeout=60))
            head = f"GET /dashboard/events HTTP/1.1\r\nHost: autotune.test\r\nAuthorization: Bearer {secret}\r\n\r\n"
            stream.sendall(head.encode())
            return stream.recv(12)

        assert {status(secret) for secret in secrets[:2] for _ in range(64)} == {b"HTTP/1.1 200"}
        assert status(secrets[2]) == b"HTTP/1.1 429"
        other = {"Authorization": f"Bearer {secrets[2]}"}
        assert own.http.get("/winners", headers=other).status_code == 200


def test_a_request_has_a_limit_of_shapes(service: Served) -> None:
    for path, content in (
        ("/tune", {"shapes": [body(cin) for cin in range(1, 7)]}),
        ("/tune", {"keys": [key.to_json() for key in KEYS[:6]]}),
        ("/lookup", {"keys": [key.to_json() for key in KEYS[:3]], "shapes": [body(cin) for cin in range(1, 4)]}),
    ):
        answer = service.http.post(path, json=content)
        assert (answer.status_code, "at most 5 shapes" in answer.json()["detail"]) == (422, True)


@pytest.mark.slow
def test_few_exports_are_written_at_once(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        store.merge(winner_of(key_of(1 + number % 100, 8 + number // 100)) for number in range(3000))
    with served(tmp_path / "a.db") as own, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: own.http.get("/export"), range(8)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "10"
        else:
            assert len(load(answer.content)) == 3000


def test_lookups_are_counted_by_what_is_known(service: Served) -> None:
    def counted() -> list[float]:
        text = service.http.get("/metrics").text
        return [
            float(found[1]) if (found := re.search(rf'autotune_lookups_total{{outcome="{name}"}} (\S+)', text)) else 0.0
            for name in ("hit", "guess", "miss")
        ]

    before = counted()
    service.http.post("/lookup", json={"keys": [key_of(61).to_json(), key_of(62).to_json(), key_of(62).to_json()]})
    first, again = (service.http.get("/lookup?input=1x61x56x56&weight=64x61x3x3&padding=1") for _ in range(2))
    assert first.status_code == again.status_code == 404
    assert (first.content, first.headers["content-type"]) == (again.content, again.headers["content-type"])
    assert [new - old for new, old in zip(counted(), before, strict=True)] == [0, 0, 4]


def test_metrics_of_a_fleet(tmp_path: Path) -> None:
    """Four tasks: one delivered, one delivered with an error, one given to another whose former worker is late."""
    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        store.prepare_queue()
        for name in ("a", "b", "gone"):
            store.register(Worker(name=name, device=CPU))
        store.heard("b", in_use=True)
        store.retire("gone")
        tasks = [store.post("q", request(FINE, seed=seed)) for seed in range(3)]
        for task in tasks:
            assert store.begin(task, 1, "a") is not None
        assert store.reassign(tasks[2], 1)
        assert not store.deliver(tasks[2], 1, "a", [])
        assert store.deliver(tasks[0], 1, "a", [])
        assert store.deliver(tasks[1], 1, "a", [], "it broke")
        store.submit(KEYS[:5], BUDGET)
        store.claim("me")
        metrics = Metrics(store, workers=store.workers, lost=lambda: {"leases": 7, "lanes": 2})
        text = generate_latest(metrics.registry).decode()
    for line in (
        'autotune_attempts{outcome="counted"} 1.0', 'autotune_attempts{outcome="failed"} 1.0',
        'autotune_attempts{outcome="late"} 1.0', 'autotune_attempts{outcome="lost"} 1.0',
        'autotune_workers{device="CPU",state="alive"} 1.0', 'autotune_workers{device="CPU",state="in_use"} 1.0',
        'autotune_workers{device="CPU",state="ended"} 1.0', 'autotune_workers{device="CPU",state="silent"} 0.0',
        "autotune_leases_lost_total 7.0", "autotune_lanes_lost_total 2.0",
        "autotune_database_up 1.0",
    ):  # fmt: skip
        assert line in text, line
    assert re.search(r'autotune_queue_keys{device="CPU",state="queued",target="\w+"} 4.0', text)
    assert re.search(r'autotune_queue_keys{device="CPU",state="running",target="\w+"} 1.0', text)
    assert re.search(r'autotune_queue_oldest_seconds{device="CPU",target="\w+"} [0-9.e-]+', text)
    assert re.search(r'autotune_database_revision{revision="\d{4}"} 1.0', text)
