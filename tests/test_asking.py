"""A program that meets a convolution that nobody has tuned: asked for once, tuned when the device is idle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import http_service
import pytest
from databases import child
from served import body, key_of, served, until, winner_of

from autotune.client import Client
from autotune.device_use import in_use, mark_in_use
from autotune.sources import HttpSource, SourceError
from autotune.sources.asking_source import AskingSource
from strategies.key import Policy

PROGRAM = """
import sys
import autotune
autotune.install(sys.argv[1], tune=True)
from tinygrad import Tensor
for _ in range(2):
    Tensor.randn(1, 5, 8, 8, device="CPU").conv2d(Tensor.randn(4, 5, 3, 3, device="CPU"), padding=1).realize()
print(autotune.stats().misses, flush=True)
sys.stdin.read()
"""

JOB = {"id": "1", "name": "", "state": "queued", "done_keys": 0, "total_keys": 1, "progress": {}}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Marks of this test alone, for this process."""
    monkeypatch.setattr("autotune.device_use.runtime_directory", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def warned() -> list[str]:
    return []


def asking(url: str, warned: list[str], timeout_s: float = 5.0) -> AskingSource:
    source = HttpSource(url, timeout_s=timeout_s)
    return AskingSource(source, Client(url), lambda _, said: warned.append(said), Policy())


def jobs_of(http: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/jobs").json()["jobs"]
    return found


def test_a_miss_is_asked_for_once(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.sources.asking_source.GATHER_S", 2.0)
    with served(tmp_path / "a.db") as service:
        source = asking(service.url, warned)
        assert source.lookup([key_of(16)]) == {}
        assert source.lookup([key_of(16), key_of(32)]) == {}
        assert in_use("CPU") is False
        until(lambda: jobs_of(service.http))
        assert in_use("CPU")  # from before the service heard of it
        until(lambda: all(job["state"] == "done" for job in jobs_of(service.http)))
        found = source.lookup([key_of(16), key_of(32)])
        assert found.keys() == {key_of(16).digest, key_of(32).digest}
        [job] = jobs_of(service.http)
        assert (job["idle"], job["total_keys"]) == (True, 2)
        source.close()
        source.close()
    assert warned == []


def test_a_service_that_cannot_be_asked_is_said_and_asked_again(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.sources.asking_source.GATHER_S", 0.05)
    monkeypatch.setattr("autotune.sources.asking_source.RETRY_S", 0.1)

    class Known:
        """Answers lookups while the service is away."""

        def lookup(self, keys: Any) -> dict[str, Any]:
            return {}

        def version(self) -> object:
            return 1

        def close(self) -> None:
            pass

    source = AskingSource(Known(), Client("http://127.0.0.1:1"), lambda _, said: warned.append(said), Policy())
    source.lookup([key_of(16)])
    until(lambda: warned)
    assert "could not be asked to tune" in warned[0]
    until(lambda: source.lookup([key_of(16)]) or len(warned) > 1)
    source.close()


def test_a_service_that_answers_too_late_is_asked_for_what_it_does_not_know(
    warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program goes on without an answer; what has a winner is not tuned again for that."""
    monkeypatch.setattr("autotune.sources.asking_source.GATHER_S", 0.05)
    known, new = key_of(16), key_of(32)
    asked: list[Any] = []

    def answer(request: Any, sent: Any) -> object:
        if request.path == "/tune":
            asked.extend(sent["keys"])
            return JOB
        time.sleep(0.6)
        return {"winners": {known.digest: winner_of(known).to_json()}, "digests": []}

    with http_service.service(answer) as url:
        source = asking(url, warned, timeout_s=0.3)
        with pytest.raises(SourceError, match="none within"):
            source.lookup([known, new])
        until(lambda: asked)
        source.close()
    assert (asked, warned) == ([new.to_json()], [])


def test_what_is_missed_while_others_are_sent_is_asked_for_at_the_end(
    warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.sources.asking_source.GATHER_S", 0.05)
    asked: list[Any] = []

    def answer(request: Any, sent: Any) -> object:
        if request.path == "/tune":
            asked.append(sent["keys"])
            assert source._closing.wait(20)  # the first is not answered before the program ends
            return JOB
        return {"winners": {}, "digests": []}

    with http_service.service(answer) as url:
        source = asking(url, warned)
        source.lookup([key_of(16)])
        until(lambda: asked)
        source.lookup([key_of(32)])
        source.close()
    assert (asked, warned) == ([[key_of(16).to_json()], [key_of(32).to_json()]], [])


def test_only_a_service_can_be_asked(tmp_path: Path) -> None:
    import autotune

    with pytest.raises(SourceError, match="expected the address of a service, which can tune"):
        autotune.install(tmp_path / "winners.json", tune=True)


def test_a_program_is_not_disturbed(tmp_path: Path) -> None:
    """End to end: the job of a running program's miss waits until the program has ended."""
    with served(tmp_path / "a.db") as service, child(PROGRAM, service.url) as program:
        assert program.stdout is not None
        assert int(program.stdout.readline()) >= 1  # also if its lookup, which has 0.3 s, was answered too late
        [job] = until(lambda: jobs_of(service.http))
        time.sleep(1.5)
        [waiting] = jobs_of(service.http)
        assert (waiting["id"], waiting["state"]) == (job["id"], "queued")
        assert waiting["progress"]["waiting_for"]
        program.kill()


def test_a_mark_ends_with_its_process(tmp_path: Path) -> None:
    program = "import sys, pathlib; from autotune.device_use import mark_in_use"
    program += "; mark_in_use('METAL', pathlib.Path(sys.argv[1])); print('on', flush=True); sys.stdin.read()"
    with child(program, str(tmp_path)) as first, child(program, str(tmp_path)) as second:
        for process in (first, second):
            assert process.stdout is not None
            process.stdout.readline()
        first.kill()
        first.wait()
        assert in_use("METAL", tmp_path)
        second.kill()
        second.wait()
        assert not in_use("METAL", tmp_path)
        mark_in_use("METAL", tmp_path)
        mark_in_use("METAL", tmp_path)
        assert in_use("METAL", tmp_path)


def test_whole_keys_can_be_tuned(tmp_path: Path) -> None:
    with served(tmp_path / "a.db", trial_s=5.0) as service:
        response = service.http.post("/tune", json={"keys": [key_of(16).to_json()]})
        assert response.status_code == 202
        assert response.json()["id"] == service.http.post("/tune", json={"shapes": [body(16)]}).json()["id"]
        assert service.http.post("/tune", json={"keys": [{"shape": 1}]}).status_code == 422
        assert service.http.post("/tune", json={"keys": []}).status_code == 422
