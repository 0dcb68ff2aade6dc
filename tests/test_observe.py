"""What a service says of itself: ids, log lines, counts, whether it is ready; and what doctor makes of it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from served import CPU, Served, body, ended, key_of, served, until, winner_of

from api import logs
from api.cli import main
from api.doctor import Level
from api.doctor_server import examine_workers
from api.readiness import Readiness
from api.release import release
from autotune.fleet import Worker
from db import DatabaseError, Scope, open_store
from tests.http_service import service as answering

SECRET = "autotune_" + "x" * 43


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("observe") / "autotune.db"
    with open_store(path) as store:
        store.decide(winner_of(key_of()))
    with served(path) as running:
        yield running


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The logger that `configure` changes, as it was afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("autotune")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield root
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def numbers(service: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = service.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families for sample in family.samples
    }  # fmt: skip


def test_metrics_count_requests_jobs_and_rows(service: Served) -> None:
    counted = (
        "autotune_http_requests_total",
        (("method", "GET"), ("route", "/winners/{winner_id}"), ("status", "404")),
    )
    before = numbers(service).get(counted, 0.0)
    for number in range(3):
        service.http.get(f"/winners/{900 + number}")
    done = ended(service.http, service.http.post("/tune", json={**body(50), "trials": 1}).json()["id"])
    assert done["state"] == "done"
    found = numbers(service)
    assert found[counted] == before + 3
    assert found["autotune_jobs", (("state", "done"),)] >= 1
    assert found["autotune_jobs", (("state", "queued"),)] == 0
    assert found["autotune_rows", (("table", "winners"),)] >= 2
    assert found["autotune_database_up", ()] == 1
    assert found["autotune_info", (("version", release()),)] == 1
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert found["autotune_http_request_seconds_count", (("route", "/winners/{winner_id}"),)] == before + 3


def test_lines_that_nobody_reads_are_dropped_and_counted(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.logs.MAX_LINES", 10)
    reads, writes = os.pipe()
    with os.fdopen(reads) as reader, os.fdopen(writes) as writer:
        lines = logs.Lines(writer.fileno())
        logs.configure("text", lines)
        lines.write("x" * 1_000_000 + "\n")  # more than the pipe holds
        until(lines._lines.empty, 60)
        for number in range(15):
            lines.write(f"line {number}\n")
        assert len(reader.readline()) == 1_000_001
        assert [reader.readline() for _ in range(10)] == [f"line {number}\n" for number in range(10)]
        assert " 5 lines were dropped" in reader.readline()
        lines.close()


def test_strange_requests_make_no_new_series(service: Served) -> None:
    for number in range(20):
        service.http.get(f"/nothing/{number}")
        service.http.request(f"X{number}", "/tune")
    routes = {labels for name, labels in numbers(service) if name == "autotune_http_requests_total"}
    assert not any("nothing" in str(labels) or "X1" in str(labels) for labels in routes)


def test_each_request_has_an_id(service: Served) -> None:
    assert service.http.get("/healthz", headers={"X-Request-Id": "mine-1.2_3"}).headers["x-request-id"] == "mine-1.2_3"
    made = {service.http.get("/nothing").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert service.http.get("/", headers={"X-Request-Id": "<script>"}).headers["x-request-id"] != "<script>"
    assert service.http.get("/winners").headers["x-content-type-options"] == "nosniff"


def test_a_log_line_is_json_with_its_request_and_without_secrets(root_logger: logging.Logger) -> None:
    out = io.StringIO()
    logs.configure("json", out)
    token = logs.request_id.set("abc")
    try:
        raise RuntimeError(f"postgresql+psycopg://me:hunter2@db/x refused {SECRET}")
    except RuntimeError:
        logging.getLogger("autotune.api").exception(
            "Authorization: Bearer %s", SECRET, extra={"fields": {"path": "/x"}}
        )
    finally:
        logs.request_id.reset(token)
    logging.getLogger("autotune.jobs").info("two\nlines")
    logging.getLogger("uvicorn").info("not ours, not worth a line")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["level"], first["logger"], first["request_id"], first["path"]) == (
        "error",
        "autotune.api",
        "abc",
        "/x",
    )
    assert "RuntimeError" in first["traceback"]
    assert "request_id" not in second
    assert second["message"] == "two\nlines"
    for secret in ("hunter2", SECRET):
        assert secret not in out.getvalue()


def test_a_log_line_is_text_for_a_person(root_logger: logging.Logger) -> None:
    out = io.StringIO()
    logs.configure("text", out)
    logging.getLogger("autotune.jobs").warning("%s sent by basic YWJj", SECRET)
    assert out.getvalue().rstrip().endswith("+00:00 WARNING autotune.jobs: autotune_*** sent by basic ***")


def test_the_log_of_a_service_is_json_and_knows_no_secrets(tmp_path: Path) -> None:
    """Whoever writes a line: we, the HTTP server of a request that is none, a bug in a route."""
    path = tmp_path / "a.db"
    with open_store(path) as store:
        secret = store.create_token("me", Scope.ADMIN)[1]
    with served(path, hosts=["autotune.test"], log_format="json") as own:
        own.http.headers["X-Request-Id"] = "mine-7"
        own.http.get(f"/winners?token={secret}&password=hunter2", headers={"Authorization": f"Bearer {secret}"})
        own.http.get("/jobs", auth=("me", secret))
        own.http.get(f"/jobs/{secret}", headers={"Authorization": f"Bearer {secret}x"})
        own.http.get("/lookup", headers={"Authorization": f"Bearer {secret}"})
        with socket.create_connection(("127.0.0.1", int(own.url.rpartition(":")[2]))) as sock:
            sock.sendall(
                f"GET /?token={secret} HTTP/1.1\r\nno header\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
            )
            assert sock.recv(1000).startswith(b"HTTP/1.1 400")
        own.stop()
        lines = [json.loads(line) for line in own.log if not line.startswith("ready ")]
    said = [(line["logger"], line.get("path"), line.get("status"), line.get("request_id")) for line in lines]
    assert said == [
        ("autotune.requests", "/winners", 200, "mine-7"), ("autotune.requests", "/jobs", 200, "mine-7"),
        ("autotune.requests", "/jobs/autotune_***", 401, "mine-7"), ("uvicorn.error", None, None, None),
    ]  # fmt: skip
    assert secret not in str(own.log)
    assert "hunter2" not in str(own.log)


@pytest.mark.parametrize("text", [
    "postgresql+psycopg://me:hunter2@db/x", "postgresql://me:hun@ter2@db/x", "host=db password=hunter2 user=me",
    "postgresql://db/x?user=me&password=hunter2", '{"password": "hunter2"}', "PGPASSWORD=hunter2", "Basic hunter2==",
    "AUTOTUNE_TOKEN=hunter2", "/lookup?access_token=hunter2&input=1", "token: 'hunter2'",
])  # fmt: skip
def test_secrets_are_known_by_where_they_stand(text: str) -> None:
    hidden = logs.without_secrets(json.dumps({"message": text}))
    assert "ter2" not in hidden
    assert "***" in json.loads(hidden)["message"]


@pytest.mark.parametrize("piece", ["token", "://a:", "password_", 'secret"', "basic ", "@://a:"])
def test_a_long_line_costs_no_more_than_its_length(piece: str) -> None:
    """Whoever asks chooses a path, and every thread of the service waits while a pattern looks for secrets in it."""
    text = piece * (100_000 // len(piece))
    started = time.process_time()
    logs.without_secrets(text)
    assert time.process_time() - started < 2


def test_of_a_long_path_the_beginning_is_logged(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", hosts=["autotune.test"], log_format="json") as own:
        for path in ("/" + "token" * 10_000, "/" + "x" * 170 + SECRET):
            assert own.http.get(path).status_code == 401
        own.stop()
        first, second = (json.loads(line) for line in own.log if not line.startswith("ready "))
    assert first["path"].startswith("/tokentoken")
    assert len(first["path"]) == 200
    assert len(first["message"]) < 400
    assert second["path"].endswith("xautotune_***")


def test_ready_tells_the_truth(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with served(path) as own:
        assert own.http.get("/readyz").status_code == 200
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        locked = until(lambda: found if (found := own.http.get("/readyz")).status_code == 503 else None)
        assert "found it locked by" in locked.json()["detail"]  # another process, or a lane of ours that waits for it
        assert own.http.get("/healthz").status_code == 200
        assert own.http.get("/winners").status_code == 200  # readers never wait
        holder.close()
        until(lambda: own.http.get("/readyz").status_code == 200)


def test_however_often_it_is_asked_the_database_is_written_to_once_a_second() -> None:
    now, tried, wrong = [0.0], [], [""]

    def attempt() -> None:
        tried.append(now[0])
        if wrong[0]:
            raise DatabaseError(wrong[0])

    counted = iter([{"queued": 1}, {"queued": 2}])

    async def ask() -> None:
        readiness = Readiness(attempt, lambda: next(counted), clock=lambda: now[0])
        assert await asyncio.gather(*(readiness.expect_writable() for _ in range(100))) == [{"queued": 1}] * 100
        wrong[0] = "full"
        await readiness.expect_writable()
        now[0] = 1.5
        for _ in range(3):
            with pytest.raises(DatabaseError, match="full"):
                await readiness.expect_writable()
        wrong[0], now[0] = "", 3.0
        assert await readiness.expect_writable() == {"queued": 2}

    asyncio.run(ask())
    assert tried == [0.0, 1.5, 3.0]


def test_however_many_ask_whether_it_is_ready_they_wait_in_one_thread(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with served(path) as own, ThreadPoolExecutor(60) as threads:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        time.sleep(1.1)  # what it said last no longer holds
        asked = [threads.submit(httpx.get, own.url + "/readyz", timeout=30) for _ in range(60)]
        time.sleep(1.0)
        began = time.monotonic()
        assert own.http.get("/winners").status_code == 200
        took_s = time.monotonic() - began
        assert not any(answer.done() for answer in asked)
        holder.close()
        assert took_s < 8.0  # the others wait 10 s for the lock
        assert {answer.result(30).status_code for answer in asked} == {200}


def test_hardly_any_room_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path / "a.db") as store:
        store.expect_writable()
        monkeypatch.setattr("db.sqlite.MIN_FREE_BYTES", 1 << 60)
        with pytest.raises(DatabaseError, match="free some"):
            store.expect_writable()


def test_doctor_examines_a_service(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--server", service.url, "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert {"service", "way there", "token", "ready", "device CPU", "lookup"} == checks.keys()
    assert release() in checks["service"]["found"]
    assert {check["level"] for check in checks.values()} <= {"ok", "warning"}


def test_doctor_names_workers_that_take_no_work() -> None:
    metal, gone = replace(CPU, device="METAL"), replace(CPU, device="CUDA")
    workers = [
        Worker(name="a", device=CPU), Worker(name="b", device=CPU, unfit="its device failed a test"),
        Worker(name="c", device=metal, unfit="it was stuck"), Worker(name="d", device=metal, silent_s=400.0),
        Worker(name="e", device=gone, unfit="long ago", ended=True),
    ]  # fmt: skip
    found = {check.name: check for check in examine_workers([worker.to_json() for worker in workers])}
    assert found.keys() == {"workers for CPU", "worker b", "workers for METAL", "worker c"}
    assert (found["workers for CPU"].level, found["workers for CPU"].found) == (Level.OK, "1 take work")
    assert (found["worker b"].level, found["worker c"].level) == (Level.WARNING, Level.WARNING)
    assert "its device failed a test" in found["worker b"].found
    assert found["workers for METAL"].level is Level.WARNING
    assert "--device METAL" in found["workers for METAL"].advice


def test_doctor_examines_what_is_not_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    with open_store(path) as store:
        token, secret = store.create_token("me", Scope.READ)
    with served(path, hosts=["autotune.test"]) as own:
        monkeypatch.setenv("AUTOTUNE_URL", own.url)
        assert main(["doctor", "--server"]) == 1
        assert "token" in capsys.readouterr().err
        monkeypatch.setenv("AUTOTUNE_TOKEN", secret)
        assert main(["doctor", "--server"]) == 0
        assert "me may read" in capsys.readouterr().out
        with open_store(path) as store:
            store.revoke_token(token.id)
        assert main(["doctor", "--server"]) == 1
        assert "AUTOTUNE_TOKEN" in capsys.readouterr().err
    assert main(["doctor", "--server"]) == 1
    assert "autotune serve" in capsys.readouterr().err


@pytest.mark.parametrize("said", [{}, {"scope": 7, "winners": 7, "devices": 7, "workers": [7]}])
def test_doctor_examines_what_is_not_the_service(said: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Something else may answer /healthz, too."""
    with answering(lambda *_: said) as url:
        assert main(["doctor", "--server", url, "--json"]) == 1
    levels = {check["name"]: check["level"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert levels.keys() >= {"service", "way there", "token", "ready", "workers", "lookup"}
    assert {levels[name] for name in ("token", "ready", "workers", "lookup")} == {"fault"}


def test_every_metric_is_documented_and_alerts_name_no_other(service: Served) -> None:
    service.http.post("/tune", json={**body(51), "trials": 1})
    families = text_string_to_metric_families(service.http.get("/metrics").text)
    found = {family.name for family in families if re.fullmatch("autotune_.*(?<!_created)", family.name)}
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "monitoring.md").read_text()
    documented = {name.removesuffix("_total") for name in re.findall(r"(?m)^\| `(autotune_\w+)`", page)}
    assert found <= documented
    assert documented - found <= {"autotune_workers", "autotune_queue_oldest_seconds", "autotune_queue_keys"}
    rules = yaml.safe_load((docs / "alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        names = {re.sub("_(total|bucket)$", "", name) for name in re.findall(r"autotune_\w+", rule["expr"])}
        assert names <= documented, rule["alert"]
        assert rule["annotations"]["summary"]
    assert {rule["expr"].count("(") - rule["expr"].count(")") for rule in rules} == {0}
