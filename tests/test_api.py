"""The HTTP service: a real server in a process of its own, on a real database."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from served import CPU, Served, body, ended, key_of, served, until, winner_of

from api.devices import ProbedDevices, UnknownDeviceError
from api.guard import BodyGuard
from api.protocol import MAX_CONNECTIONS
from api.settings import Settings
from autotune.bundle import FORMAT, VERSION, dump, load
from autotune.client import Client, ServiceError, ServiceUnreachableError
from autotune.measurement import Measurement, Status
from autotune.winner import Winner, WinnerState
from db import Scope, open_store
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec, KeyFormatError

HUGE = 10**4000
ELSEWHERE = ConvKey(shape=key_of(32).shape, device=DeviceSpec(device="METAL", arch="Apple9"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    database = tmp_path_factory.mktemp("api") / "autotune.db"
    with open_store(database) as store:
        store.decide(winner_of(key_of(), decided_at=1000.0))
        store.decide(winner_of(key_of(128, 28), decided_at=2000.0))
        store.decide(winner_of(ELSEWHERE, decided_at=500.0))
        store.record(
            Measurement(
                key=key_of(), candidate=Candidate.of("four_buffer", tile=4), status=Status.WRONG, attempt="one",
                error=float("nan"), times_s=(1e-3, float("inf")),
            )
        )  # fmt: skip
    with served(database) as running:
        yield running


@pytest.fixture
def http(service: Served) -> httpx.Client:
    return service.http


def problem(response: httpx.Response) -> dict[str, Any]:
    """The problem document that it must be: one line, and nothing that is not JSON."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document: dict[str, Any] = json.loads(response.text, parse_constant=pytest.fail)
    assert document["status"] == response.status_code
    assert document["title"]
    assert 0 < len(document["detail"]) <= 500
    assert document["detail"].isprintable()
    return document


def post(http: httpx.Client, path: str, content: Any) -> httpx.Response:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return http.post(path, content=data, headers={"Content-Type": "application/json"})


BAD_BODIES: list[tuple[Any, int, str]] = [
    (b"", 422, "missing"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe", 400, "UTF-8"),
    (b"[" * 90_000, 400, "nested"),
    (b'{"input": NaN}', 400, "NaN"),
    (b'{"budget": 1e999}', 400, "too large"),
    (b'{"dtype": "\\ud800"}', 400, "UTF-8"),
    (b'{"input": ' + b"1" * 5000 + b"}", 400, "digits"),
    ([], 422, "expected"),
    (7, 422, ""),
    ("text", 422, ""),
    (None, 422, ""),
    ({}, 422, "input is missing"),
    ({"shapes": []}, 422, "shapes"),
    ({"shapes": 3}, 422, "shapes"),
    ({"shapes": [7]}, 422, "shapes[0]"),
    ({"shapes": [body(), body(0)]}, 422, "shapes[1]"),
    (body(unknown=1), 422, "unknown"),
    (body() | {"input": "1x64x56x56"}, 422, "input must be a list"),
    (body() | {"input": []}, 422, "dimensions"),
    (body() | {"input": [1, 64, 56, 56, 56]}, 422, "dimensions"),
    (body() | {"input": [1, 64, 0, 56]}, 422, "between 1 and"),
    (body() | {"input": [1, -64, 56, 56]}, 422, "between 1 and"),
    (body() | {"input": [1, 64, 5.5, 56]}, 422, "whole number"),
    (body() | {"input": [1, 64, True, 56]}, 422, "whole number"),
    (body() | {"input": [1, 64, HUGE, 56]}, 422, "between 1 and"),
    (body() | {"input": [[1], {}, None, "x"]}, 422, "whole number"),
    (body() | {"input": {"0": 1}}, 422, "list"),
    (body() | {"input": [1] * 20_000}, 422, "dimensions"),
    (body() | {"weight": [64, 32, 3, 3]}, 422, "64 channels"),
    (body() | {"weight": [64, 64, 99, 99]}, 422, "does not fit"),
    (body() | {"input": [1024, 64, 1024, 1024]}, 422, "more than"),
    (body() | {"padding": -1}, 422, "padding"),
    (body() | {"padding": HUGE}, 422, "padding"),
    (body() | {"padding": "1"}, 422, "padding"),
    (body() | {"padding": {"a": 1}}, 422, "padding"),
    (body() | {"padding": [[1], [2]]}, 422, "padding"),
    (body() | {"stride": 0}, 422, "stride"),
    (body() | {"stride": [1, 1, 1]}, 422, "stride"),
    (body() | {"dilation": None}, 422, "dilation"),
    (body() | {"groups": 7}, 422, "groups"),
    (body() | {"groups": "2"}, 422, "groups"),
    (body() | {"groups": -HUGE}, 422, "groups"),
    (body() | {"dtype": "float64"}, 422, "dtype"),
    (body() | {"dtype": 7}, 422, "dtype"),
    (body() | {"device": "NOPE"}, 422, "no device NOPE"),
    (body() | {"device": "../../etc/passwd"}, 422, "device"),
    (body() | {"device": ""}, 422, "device"),
    (body() | {"device": 7}, 422, "device"),
    (body() | {"policy": []}, 422, "policy"),
    (body() | {"policy": {"max_error": -1}}, 422, "policy.max_error"),
    (body() | {"policy": {"max_workspace_bytes": HUGE}}, 422, "max_workspace_bytes"),
    (body() | {"policy": {"nonsense": 1}}, 422, "policy.nonsense"),
    (body() | {"budget": 0}, 422, "budget"),
    (body() | {"budget": "0s"}, 422, "budget"),
    (body() | {"budget": -5}, 422, "budget"),
    (body() | {"budget": "nan"}, 422, "budget"),
    (body() | {"budget": "soon"}, 422, "60s"),
    (body() | {"budget": 1e300}, 422, "budget"),
    (body() | {"budget": HUGE}, 422, "budget"),
    (body() | {"budget": True}, 422, "budget"),
    (body() | {"budget": [60]}, 422, "budget"),
    (body() | {"trials": 0}, 422, "trials"),
    (body() | {"trials": HUGE}, 422, "trials"),
    (body() | {"trials": 1.5}, 422, "trials"),
]


@pytest.mark.parametrize(("content", "status", "says"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bad_tune_is_a_problem(http: httpx.Client, content: Any, status: int, says: str) -> None:
    response = post(http, "/tune", content)
    assert (response.status_code, says in problem(response)["detail"]) == (status, True), response.text


BAD_KEYS = [
    7, "x", [1], [None], [[]], [{}], [{"shape": 1}], [{"shape": {}, "device": {}}],
    [key_of().to_json() | {"policy": []}], [key_of().to_json() | {"policy": None}],
    [key_of().to_json() | {"policy": [{}]}], [key_of().to_json() | {"version": 99}],
    [key_of().to_json() | {"device": {"device": "CPU", "flags": [1]}}],
    [key_of().to_json() | {"device": {"device": "CPU", "cores": HUGE, "flags": [["A", 1, 2]]}}],
    [key_of().to_json() | {"shape": {**key_of().shape.to_json(), "kernel": [HUGE, 3]}}],
    [key_of().to_json() | {"shape": {**key_of().shape.to_json(), "padding": [1, 1]}}],
    [key_of().to_json() | {"shape": {**key_of().shape.to_json(), "spatial": None}}],
    [key_of().to_json() | {"shape": {**key_of().shape.to_json(), "batch": "1"}}],
    [key_of().to_json() | {"shape": {**key_of().shape.to_json(), "dtype": []}}],
]  # fmt: skip


@pytest.mark.parametrize("keys", BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_bad_keys_are_a_problem(http: httpx.Client, keys: Any) -> None:
    response = post(http, "/lookup", {"keys": keys})
    assert response.status_code == 422
    problem(response)


NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e308, HUGE, -HUGE, "", "x" * 5000, "\x00", "<b>", [], [[]], [None], {}, {"a": {"b": []}},
)  # fmt: skip


def damaged(value: Any, random: Random) -> Any:
    """The same JSON with something nasty in one place."""
    if isinstance(value, dict | list) and value and random.random() < 0.85:
        at = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        changed = value.copy()
        if random.random() < 0.1:
            del changed[at]
        else:
            changed[at] = damaged(value[at], random)
        return changed
    return random.choice(NASTY)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[httpx.Client]:
    """A service of its own, for tests that leave anything behind."""
    with served(tmp_path / "sandbox.db") as running:
        yield running.http


def test_no_damage_to_a_body_is_the_services_fault(sandbox: httpx.Client) -> None:
    random, winner = Random(7), winner_of(key_of()).to_json()
    bundle = json.loads(dump([winner_of(key_of())]))
    whole = [
        ("/tune", body(policy={"max_error": 1e-4}, budget="5s", trials=2, flags={"BEAM": "2"})),
        ("/tune", {"shapes": [body(), body(32)], "budget": 5}),
        ("/lookup", {"keys": [winner["key"]], "shapes": [body()]}),
        ("/import", bundle),
    ]
    statuses = set()
    for _ in range(60):
        for path, content in whole:
            response = post(sandbox, path, damaged(content, random))
            statuses.add(response.status_code)
            if response.status_code >= 400:
                problem(response)
    assert statuses == {200, 202, 422}


def test_no_damaged_winner_breaks_the_service(sandbox: httpx.Client) -> None:
    """With a checksum that fits: whoever writes it may know how."""
    random = Random(8)
    for _ in range(60):
        winners = [damaged(winner_of(key_of(11)).to_json(), random)]
        content = {"format": FORMAT, "version": VERSION, "winners": winners}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        response = post(sandbox, "/import", content | {"sha256": hashlib.sha256(text.encode()).hexdigest()})
        assert response.status_code in (200, 422), (response.text, text)
        sandbox.get("/winners").raise_for_status()
        sandbox.get("/").raise_for_status()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/jobs/", 404), ("PUT", "/tune", 405), ("DELETE", "/winners", 405),
        ("GET", "/jobs/unknown", 404), ("DELETE", "/jobs/unknown", 404), ("GET", "/jobs/unknown/events", 404),
        ("GET", f"/jobs/{'x' * 1000}", 422), ("GET", "/jobs?limit=0", 422), ("GET", f"/jobs?offset={HUGE}", 422),
        ("GET", "/winners/999", 404), ("GET", "/winners/0", 422), ("GET", "/winners/x", 422),
        ("GET", f"/winners/{HUGE}", 422), ("GET", f"/winners/{2**63 - 1}", 404), ("GET", "/winners?limit=-1", 422),
        ("PATCH", "/winners/1", 422), ("POST", "/import", 415), ("GET", "/docs", 404),
        ("GET", "/lookup", 422), ("GET", "/lookup?input=1x64x56x56&weight=x", 422),
        ("GET", "/lookup?input=1x64x56x56&weight=64x64x3x3&padd=1", 422),
        ("GET", "/lookup?input=1x64x56x56&weight=64x64x3x3&max_error=nan", 422),
        ("GET", "/lookup?input=1x64x56x56&weight=64x64x3x3&device=NOPE", 422),
        ("GET", "/lookup?input=1x64x56x56&weight=64x64x3x3&flags=BEAM", 422),
        ("GET", "/lookup?input=1x64x56x56&weight=64x64x3x3&device=%00%ff", 422),
    ],
)  # fmt: skip
def test_bad_request_is_a_problem(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    problem(response)


def test_validation_names_each_fault(http: httpx.Client) -> None:
    document = problem(post(http, "/tune", body() | {"groups": "2", "dtype": 7}))
    assert {error["pointer"] for error in document["errors"]} == {"groups", "dtype"}


def test_body_that_is_not_json_content(http: httpx.Client) -> None:
    response = http.post("/tune", content=json.dumps(body()), headers={"Content-Type": "text/plain"})
    assert response.status_code == 422
    assert "application/json" in problem(response)["detail"]


def test_body_too_large(service: Served, http: httpx.Client) -> None:
    response = post(http, "/tune", b" " * 100_001)
    assert response.status_code == 413
    assert "100000 bytes" in problem(response)["detail"]
    chunks = (b" " * 10_000 for _ in range(20))  # no Content-Length to believe
    assert http.post("/tune", content=chunks, headers={"Content-Type": "application/json"}).status_code == 413
    assert post(http, "/import", b" " * 200_000).status_code == 422


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_foreign_host_is_refused_on_loopback(http: httpx.Client, host: str) -> None:
    response = http.get("/winners", headers={"Host": host})
    assert response.status_code == 421
    problem(response)


def test_foreign_origin_may_not_write(http: httpx.Client) -> None:
    here = str(http.base_url).rstrip("/")
    port = http.base_url.port
    foreign = [
        "http://evil.example",
        "https" + here[4:],
        f"http://127.0.0.1:{port + 1}",
        "http://127.0.0.1",
        "null",
        "",
    ]
    for origin in (*foreign, f"http://localhost:{port}"):  # another name is another page's home
        for method, path in (("DELETE", "/jobs/unknown"), ("POST", "/winners/1/kernels"), ("POST", "/tune")):
            response = http.request(method, path, headers={"Origin": origin})
            assert response.status_code == 403, (origin, path)
            problem(response)
    assert http.delete("/jobs/unknown", headers={"Origin": here}).status_code == 404
    assert http.get("/winners", headers={"Origin": "http://evil.example"}).status_code == 200


def test_a_body_with_two_lengths_ends_the_connection(service: Served) -> None:
    """What follows it might be another request to one who goes by the other length."""
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /lookup HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    smuggled = f"GET /jobs HTTP/1.1\r\nHost: {host}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall((head + "2\r\n{}\r\n0\r\n\r\n" + smuggled).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"found both" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_static_files_say_how_they_are_asked_for(http: httpx.Client) -> None:
    response = http.post("/static/dashboard.css")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"
    assert "use GET, HEAD" in problem(response)["detail"]


def test_nonsense_instead_of_http_leaves_the_service_alive(service: Served, http: httpx.Client) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    for sent in (b"\x16\x03\x01\x02\x00", b"POST /tune HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", b""):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert http.get("/healthz").json()["status"] == "ok"


def test_lookup_hit(http: httpx.Client) -> None:
    answer = http.get("/lookup?input=1x64x56x56&weight=64x64x3x3&padding=1&device=CPU").json()
    assert Winner.from_json(answer["winner"]) == winner_of(key_of())
    assert (answer["digest"], answer["state"]) == (key_of().digest, "verified")
    assert http.get("/lookup?input=1x64x56x56&weight=64x64x3x3&padding=1,1,1,1").status_code == 200


def test_lookup_miss_names_the_nearest(http: httpx.Client) -> None:
    response = http.get("/lookup?input=1x64x60x60&weight=64x64x3x3&padding=1&device=cpu")
    document = problem(response)
    assert response.status_code == 404
    assert document["nearest"][0]["digest"] == key_of().digest
    assert document["nearest"][0]["difference"] == {"shape.spatial": [[60, 60], [56, 56]]}
    assert "1x64x56x56" in document["detail"]


def test_lookup_of_a_device_that_is_elsewhere(http: httpx.Client) -> None:
    query = "weight=64x32x3x3&padding=1&device=METAL"
    assert http.get(f"/lookup?input=1x32x56x56&{query}").json()["digest"] == ELSEWHERE.digest
    assert http.get(f"/lookup?input=1x32x57x57&{query}").status_code == 404
    assert http.get(f"/lookup?input=1x32x56x56&{query}&flags=NOOPT=1").status_code == 404  # tuned without


def test_lookup_of_many(http: httpx.Client) -> None:
    keys = [key_of(), key_of(7), key_of(128, 28)]
    answer = post(http, "/lookup", {"keys": [key.to_json() for key in keys], "shapes": [body()]}).json()
    assert answer["digests"] == [*(key.digest for key in keys), keys[0].digest]
    assert set(answer["winners"]) == {keys[0].digest, keys[2].digest}
    assert Winner.from_json(answer["winners"][keys[0].digest]) == winner_of(keys[0])
    assert post(http, "/lookup", {}).json() == {"winners": {}, "digests": []}


def test_winners_are_filtered_and_paged(http: httpx.Client) -> None:
    names = [item["name"] for item in http.get("/winners?device=CPU").json()["winners"]]
    assert names[-2:] == [str(key_of(128, 28)), str(key_of())]
    first = http.get("/winners?limit=1&device=METAL").json()
    assert ([item["digest"] for item in first["winners"]], first["next"]) == ([ELSEWHERE.digest], None)
    pages, offset = [], 0
    while offset is not None:
        page = http.get(f"/winners?limit=1&offset={offset}").json()
        pages += [item["digest"] for item in page["winners"]]
        offset = page["next"]
    assert len(pages) == len(set(pages)) >= 3


def test_winner_with_its_measurements(http: httpx.Client) -> None:
    winner_id = next(w["id"] for w in http.get("/winners").json()["winners"] if w["digest"] == key_of().digest)
    answer = json.loads(http.get(f"/winners/{winner_id}").text, parse_constant=pytest.fail)
    [measured] = answer["measurements"]
    assert (measured["status"], measured["error"], measured["times_s"]) == ("wrong", None, [1e-3, None])


def test_pin_and_revoke(http: httpx.Client) -> None:
    winner_id = next(w["id"] for w in http.get("/winners").json()["winners"] if w["digest"] == ELSEWHERE.digest)
    path, query = f"/winners/{winner_id}", "/lookup?input=1x32x56x56&weight=64x32x3x3&padding=1&device=METAL"
    assert http.patch(path, json={"state": "pinned"}).json()["state"] == "pinned"
    assert http.get(query).json()["state"] == "pinned"
    assert http.patch(path, json={"state": "revoked"}).status_code == 200
    assert "revoked" in problem(http.get(query))["detail"]
    assert http.patch(path, json={"state": "verified"}).status_code == 200
    assert http.get(query).status_code == 200
    for bad in ({"state": "guess"}, {"state": 7}, {}, {"state": "pinned", "more": 1}, []):
        response = http.patch(path, json=bad)
        assert response.status_code == 422
        problem(response)
    assert http.patch("/winners/999", json={"state": "pinned"}).status_code == 404


def test_export_and_import(http: httpx.Client, tmp_path: Path) -> None:
    exported = http.get("/export").content
    assert {winner.key.digest for winner in load(exported)} >= {key_of().digest, ELSEWHERE.digest}
    assert post(http, "/import", exported).json()["imported"] == 0
    more = winner_of(key_of(16, 32), strategy="hybrid_grid")
    assert post(http, "/import", dump([more])).json() == {"imported": 1, "kept": 0}
    assert post(http, "/lookup", {"keys": [more.key.to_json()]}).json()["winners"][more.key.digest] == more.to_json()
    for damaged in (exported[:-40], exported.replace(b"four_buffer", b"five_buffer"), b"{}", b"[]", b""):
        response = post(http, "/import", damaged)
        assert response.status_code == 422
        problem(response)


def test_health_and_devices(http: httpx.Client) -> None:
    assert http.get("/healthz").json()["status"] == "ok"
    assert http.get("/readyz").json()["status"] == "ready"
    devices = http.get("/devices").json()
    assert (devices["default"], devices["devices"]) == ("CPU", [{"device": "CPU", "spec": CPU.to_json()}])


def test_a_method_that_is_not_taken_names_those_that_are(http: httpx.Client) -> None:
    for path, methods in (("/lookup", "GET, POST"), ("/winners/1", "GET, PATCH"), ("/tune", "POST")):
        answer = http.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)
        assert methods in problem(answer)["detail"]


def test_openapi_describes_every_route(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/tune", "/jobs", "/jobs/{job_id}", "/jobs/{job_id}/events", "/jobs/{job_id}/retry", "/lookup",
        "/winners", "/winners/{winner_id}", "/winners/{winner_id}/kernels", "/export", "/import", "/devices",
        "/workers", "/healthz", "/readyz", "/metrics", "/token",
    }  # fmt: skip


def test_openapi_links_answers_to_what_they_name(http: httpx.Client) -> None:
    """A program that walks along them gets from a job to its events and its end, and none leads nowhere."""
    paths = http.get("/openapi.json").json()["paths"]
    operations = {o["operationId"]: path for path, item in paths.items() for o in item.values()}
    followed = paths["/tune"]["post"]["responses"]["202"]["links"].values()
    assert {operations[link["operationId"]] for link in followed} == {path for path in paths if "{job_id}" in path}
    job = http.post("/tune", json=body(30)).json()
    assert [link["parameters"] for link in followed] == [{"job_id": "$response.body#/id"}] * 4
    assert http.get(f"/jobs/{job['id']}").json()["id"] == job["id"]
    latest = paths["/jobs"]["get"]["responses"]["200"]["links"].values()
    assert {link["parameters"]["job_id"] for link in latest} == {"$response.body#/jobs/0/id"}
    assert http.get("/jobs").json()["jobs"][0]["id"] == job["id"]


def test_client_speaks_to_it(service: Served) -> None:
    client = Client(service.url)
    job = client.tune(body(48))
    assert [found["state"] for found in client.follow(job["id"], poll_s=0.02)][-1] == "done"
    assert client.lookup_keys([key_of(48)])[key_of(48).digest].candidate.strategy == "four_buffer"
    assert (key_of(48)) in [winner.key for _, winner in client.winners(device="CPU")]
    assert client.devices()["default"] == "CPU"
    assert client.cancel(job["id"])["state"] == "done"
    with pytest.raises(ServiceError, match="groups") as refused:
        client.tune(body(groups=7))
    assert refused.value.status == 422
    with pytest.raises(ServiceError, match="no winner"):
        client.lookup({"input": "1x3x9x9", "weight": "3x3x3x3"})


def test_client_says_who_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceUnreachableError, match="autotune serve"):
            Client(url, timeout_s=0.1).job("x")
    with pytest.raises(ServiceUnreachableError, match="autotune serve"):
        Client(url, timeout_s=1).job("x")


def test_devices_are_described_by_a_child() -> None:
    devices = ProbedDevices()
    assert "CPU" in devices.names()
    plain, searched = devices.describe("CPU", {}), devices.describe("cpu", {"BEAM": "2"})
    assert (plain.device, plain.flags, searched.flags) == ("CPU", (), (("BEAM", "2"),))
    assert devices.describe("CPU", {"BEAM": "2"}) == searched
    for flags in ({"LD_PRELOAD": "x.so"}, {"CC": "sh"}, {"BEAM": "2; rm"}, {"BEAM": ""}):
        with pytest.raises(KeyFormatError, match="flags are those"):
            devices.describe("CPU", flags)
    for name in ("NOPE", "", "CPU; rm", "../CPU"):
        with pytest.raises(UnknownDeviceError):
            devices.describe(name)


def test_a_driver_that_hangs_costs_its_time_limit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, now = [], [1000.0]

    def hang(_: object, *question: str) -> None:
        asked.append(question)
        raise UnknownDeviceError("tinygrad could not be asked for its devices: it took more than 60 s")

    monkeypatch.setattr("api.devices._probe", hang)
    devices = ProbedDevices(clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(UnknownDeviceError, match="60 s"):
            devices.describe("CPU")
    assert len(asked) == 1
    now[0] += 60  # it is asked again: the cable may be in by now
    monkeypatch.setattr("api.devices._probe", lambda *_: {"default": "CPU", "names": ["CPU"], "flags": {}})
    assert devices.names() == ("CPU",)


def test_a_request_of_many_devices_is_refused(http: httpx.Client) -> None:
    """Each may take a process and seconds to describe, while others wait, and is a queue."""
    shapes = [body(flags={"BEAM": str(number)}) for number in range(17)]
    keys = [replace(key_of(), device=replace(CPU, arch=f"a{number}")).to_json() for number in range(17)]
    asked: list[tuple[str, dict[str, Any]]] = [("/tune", {"shapes": shapes}), ("/lookup", {"shapes": shapes})]
    for path, content in (*asked, ("/tune", {"keys": keys})):
        answer = post(http, path, content)
        assert (answer.status_code, "16 different devices" in answer.json()["detail"]) == (422, True)


def test_who_keeps_a_connection_without_using_it_makes_room(tmp_path: Path) -> None:
    with served(tmp_path / "a.db") as own, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(own.url.rpartition(":")[2]))
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(MAX_CONNECTIONS + 100)]
        for path in ("/healthz", "/readyz", "/winners"):
            assert httpx.get(own.url + path).status_code == 200
        assert idle[0].recv(1) == b""  # who has been idle for longest goes first


def test_connections_have_a_limit_below_that_of_the_system(tmp_path: Path) -> None:
    """All of them in use, by clients with a token: whoever comes later is refused, whoever was there before is
    answered."""
    with open_store(tmp_path / "a.db") as store:
        secret = store.create_token("me", Scope.READ)[1]
    options = {"hosts": ["autotune.test"], "public_reads": True}
    with served(tmp_path / "a.db", **options) as own, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(own.url.rpartition(":")[2]))
        head = ["POST /lookup HTTP/1.1", "Host: autotune.test", "Content-Length: 2", f"Authorization: Bearer {secret}"]
        busy: list[socket.socket] = []

        def occupied() -> None:
            busy.append(stack.enter_context(socket.create_connection(address)))
            busy[-1].sendall("\r\n".join([*head, "", ""]).encode())

        def refusal() -> httpx.Response | None:
            """None took the place of one whose head was not read yet: fill that again."""
            if (found := httpx.get(own.url + "/winners")).status_code == 503:
                return found
            occupied()
            return None

        for _ in range(MAX_CONNECTIONS):
            occupied()
        refused = until(refusal)
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "5")
        assert [httpx.get(own.url + path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        busy[-1].sendall(b"{}")
        assert busy[-1].recv(1000).startswith(b"HTTP/1.1 422")
        assert httpx.get(own.url + "/winners").status_code == 200  # in its place: that one is idle now


def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.guard.BODY_TIMEOUT_S", 0.05)
    sent: list[Any] = []

    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": len(sent) == 0}

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: object) -> None:
        raise AssertionError("the route was asked")

    scope = {"type": "http", "method": "POST", "path": "/tune", "headers": []}
    asyncio.run(asyncio.wait_for(BodyGuard(never, settings=Settings(db="a.db"))(scope, trickle, send), 5))
    assert sent[0]["status"] == 408


def test_client_follows_a_job_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    now, state = [0.0], {"state": "running"}
    gone, locked = ServiceUnreachableError("nobody there"), ServiceError(503, "locked", {})
    script: list[Any] = [state, gone, locked, state, gone, {"state": "done"}]

    def job(_: Client, job_id: str) -> Any:
        answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(_: float) -> None:
        now[0] += 10

    monkeypatch.setattr(Client, "job", job)
    client = Client("http://127.0.0.1:1")
    followed = list(client.follow("x", sleep=sleep, clock=lambda: now[0]))
    assert [found["state"] for found in followed] == ["running", "running", "done"]
    script = [state, *[gone] * 5]
    with pytest.raises(ServiceUnreachableError):
        list(client.follow("x", sleep=sleep, clock=lambda: now[0]))


def test_states_of_the_api_are_those_of_winners(http: httpx.Client) -> None:
    job = ended(http, post(http, "/tune", body(24)).json()["id"])
    assert job["state"] == "done"
    assert http.get("/winners?limit=1").json()["winners"][0]["state"] == WinnerState.VERIFIED


def test_a_bundle_that_no_answer_could_show_is_refused(sandbox: httpx.Client) -> None:
    """One such winner would take every list that it is in with it, for good."""
    nested: Any = 1
    for _ in range(400):
        nested = [nested]
    shown, deep, half = (winner_of(key_of(size)).to_json() for size in (32, 48, 96))
    deep["provenance"] = {"x": nested}
    half["key"]["device"]["arch"] = "\ud800"
    for winner, status in ((shown, 200), (deep, 422), (half, 422)):
        content = {"format": FORMAT, "version": VERSION, "winners": [winner]}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        response = post(sandbox, "/import", content | {"sha256": hashlib.sha256(text.encode()).hexdigest()})
        assert response.status_code == status, response.text
    for path in ("/winners", "/", "/map", "/compare", "/export"):
        sandbox.get(path).raise_for_status()
