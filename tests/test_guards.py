"""What is asked of the service by somebody who may not, or who takes all the time and room there is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pytest
from served import CPU, NoRunner, OneDevice, Served, body, key_of, served, until, winner_of

from api.app import create_app
from api.devices import PROBE, ProbedDevices, RememberedDevices, UnknownDeviceError
from api.guard import SMALL_BODY_BYTES, body_limit
from api.lanes import LocalLanes
from api.protocol import MAX_CONNECTIONS
from api.routes.dashboard import HEADERS
from api.settings import Settings
from autotune.bundle import dump
from db import Scope, open_store
from strategies.key import DeviceSpec, KeyFormatError

HUGE = 60 << 20
PATIENCE = {"HEAD_S": 2.0, "UNREAD_S": 1.0, "REST_S": 0.5}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Beyond loopback, with little patience."""
    database = tmp_path_factory.mktemp("guards") / "autotune.db"
    with open_store(database) as store:
        store.decide(winner_of(key_of()))
        secret = store.create_token("admin", Scope.ADMIN)[1]
    with served(database, hosts=["autotune.test"], max_import_bytes=64 << 20, **PATIENCE) as running:
        running.http.headers["Authorization"] = f"Bearer {secret}"
        yield running


def connected(service: Served) -> socket.socket:
    port = int(service.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def head(line: str, **headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def answered(sock: socket.socket) -> bytes:
    """Everything until the service closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            found += part
    return found


def megabytes(service: Served) -> float:
    return psutil.Process(service.process.pid).memory_info().rss / 2**20


@pytest.mark.parametrize(("method", "path", "status"), [
    ("POST", "/import", 401), ("PUT", "/import", 413), ("PUT", "/tune", 413), ("POST", "/nothing", 413),
    ("POST", "/tune", 401), ("POST", "/lookup", 401), ("PATCH", "/winners/1", 401), ("DELETE", "/jobs/1", 401),
])  # fmt: skip
def test_nothing_of_a_body_is_read_for_somebody_without_a_token(
    service: Served, method: str, path: str, status: int
) -> None:
    """60 MiB are announced, none is sent: it is answered nevertheless, and the connection ends soon."""
    with connected(service) as sock:
        started = time.monotonic()
        sock.sendall(head(f"{method} {path}", **{"Content-Type": "application/json", "Content-Length": str(HUGE)}))
        assert answered(sock).startswith(b"HTTP/1.1 %d" % status)
        assert time.monotonic() - started < 5.0


@pytest.mark.parametrize(("method", "path", "status"), [
    ("POST", "/nothing", 404), ("PUT", "/tune", 405), ("POST", "/healthz", 405), ("DELETE", "/lookup", 405),
])  # fmt: skip
def test_nothing_is_waited_for_that_no_route_takes(service: Served, method: str, path: str, status: int) -> None:
    """A small body that never comes holds no place."""
    with connected(service) as sock:
        started = time.monotonic()
        sock.sendall(head(f"{method} {path}", **{"Content-Type": "application/json", "Content-Length": "100"}))
        assert answered(sock).startswith(b"HTTP/1.1 %d" % status)
        assert time.monotonic() - started < 5.0


@pytest.mark.slow
def test_a_body_without_a_length_is_counted(service: Served) -> None:
    """`PUT /import` in chunks by nobody: hardly any of it is read, and nothing of it is kept."""
    before = megabytes(service)
    with connected(service) as sock:
        sock.sendall(head("PUT /import", **{"Transfer-Encoding": "chunked"}))
        chunk = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(60):
                sock.sendall(chunk)
        with contextlib.suppress(TimeoutError):
            found = answered(sock)
            assert not found or found.startswith(b"HTTP/1.1 405")
    assert megabytes(service) - before < 20


@pytest.mark.slow
def test_a_bundle_waits_in_a_file_and_few_do_so_at_once(service: Served) -> None:
    token = service.http.headers["Authorization"]
    said = {"Content-Type": "application/json", "Content-Length": str(HUGE), "Authorization": token}
    before = megabytes(service)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            sock = stack.enter_context(connected(service))
            sock.sendall(head("POST /import", **said))
            for _ in range(40):
                sock.sendall(b" " * (1 << 20))
        until(
            lambda: (fifth := service.http.post("/import", json={})).status_code == 429 and fifth.headers["retry-after"]
        )
        assert megabytes(service) - before < 40  # of 160
    bundle = dump([winner_of(key_of(32))])
    sent = {"Content-Type": "application/json"}
    until(lambda: service.http.post("/import", content=bundle, headers=sent).status_code == 200)


def test_each_route_has_a_limit_of_its_own(service: Served) -> None:
    settings = Settings(db="a")
    assert body_limit("POST", "/import", settings) == 64 << 20
    assert body_limit("POST", "/tune", settings) == body_limit("POST", "/lookup", settings) == 1 << 20
    for method, path in (
        ("PATCH", "/winners/1"),
        ("DELETE", "/jobs/x"),
        ("PUT", "/import"),
        ("POST", "/winners/1/kernels"),
    ):
        assert body_limit(method, path, settings) == SMALL_BODY_BYTES
    much = b" " * (SMALL_BODY_BYTES + 1)
    assert service.http.patch("/winners/1", content=much).status_code == 413
    assert service.http.request("DELETE", "/jobs/x", content=much).status_code == 413


@pytest.mark.slow
def test_a_head_that_never_ends_is_given_up(service: Served) -> None:
    """Slow loris: a byte now and then, for ever."""
    with connected(service) as silent, connected(service) as slow:
        started = time.monotonic()
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 3.0:
                slow.sendall(b"X")
                time.sleep(0.1)
        assert answered(slow).startswith(b"HTTP/1.1 408")
        assert answered(silent) == b""
        assert time.monotonic() - started < 8.0


def test_a_second_head_is_waited_for_no_longer(service: Served) -> None:
    with connected(service) as sock:
        for _ in range(3):
            sock.sendall(head("GET /healthz"))
            found = b""
            while b'"status":"ok"' not in found:
                part = sock.recv(1 << 16)
                assert part, "closed as idle"
                found += part
            assert found.startswith(b"HTTP/1.1 200")
            time.sleep(0.7)  # three of them are longer than HEAD_S: its time runs anew after each answer
        sock.sendall(b"GET /healthz HT")
        assert answered(sock).startswith(b"HTTP/1.1 408")


@pytest.mark.slow
def test_an_answer_that_nobody_reads_ends(service: Served) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
        token = service.http.headers["Authorization"]
        pipelined = head("GET /openapi.json", Authorization=token) * 400
        threading.Thread(target=_send, args=(sock, pipelined)).start()
        here = sock.getsockname()[1]
        until(lambda: _connections(service, here), 10)
        until(lambda: not _connections(service, here), 15)


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def _connections(service: Served, client_port: int) -> int:
    found = psutil.Process(service.process.pid).net_connections("tcp")
    return sum(bool(c.raddr) and c.raddr.port == client_port and c.status == "ESTABLISHED" for c in found)


@pytest.mark.slow
def test_slow_clients_keep_nobody_else_out(service: Served) -> None:
    """More of them than there are connections: they are ended, and then there is room."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(service)).sendall(b"GET / HTTP/1.1\r\nX: ")
        crowded = httpx.get(service.url + "/healthz", timeout=10)
        assert crowded.status_code in (200, 503)
        if crowded.status_code == 503:
            assert crowded.headers["content-type"] == "application/problem+json"
            assert crowded.headers["retry-after"]
        until(lambda: httpx.get(service.url + "/healthz", timeout=10).status_code == 200)


@pytest.mark.slow
def test_bodies_without_a_token_that_never_end_keep_nobody_out(tmp_path: Path) -> None:
    """As many as there are connections, of clients that need no token: whoever comes takes the place of the one that
    has kept us waiting the longest, which is told so. Who has a token is not in the way."""
    with open_store(tmp_path / "autotune.db") as store:
        secret = store.create_token("admin", Scope.ADMIN)[1]
    said = {"Content-Type": "application/json", "Content-Length": "15"}
    with (
        served(tmp_path / "autotune.db", hosts=["autotune.test"], public_reads=True) as service,
        contextlib.ExitStack() as stack,
    ):
        own = stack.enter_context(connected(service))
        own.sendall(head("POST /lookup", **said, Authorization=f"Bearer {secret}") + b'{"shapes":')
        slow = []
        for _ in range(MAX_CONNECTIONS + 20):
            slow.append(stack.enter_context(connected(service)))
            slow[-1].sendall(head("POST /lookup", **said) + b'{"shapes":')
            if len(slow) == MAX_CONNECTIONS - 1:
                time.sleep(0.5)  # all of them are amid a body
        first = answered(slow[0])
        assert first.startswith(b"HTTP/1.1 503")
        assert b"\r\nretry-after: " in first
        assert b'"status": 503' in first
        for _ in range(20):
            assert httpx.post(service.url + "/lookup", json={"shapes": []}, timeout=10).status_code == 200
        own.sendall(b" [ ]}")
        assert own.recv(1 << 16).startswith(b"HTTP/1.1 200")
        slow[-1].sendall(b" [ ]}")
        assert slow[-1].recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/lookup", "/import"])
def test_a_part_of_a_body_is_nothing(service: Served, path: str) -> None:
    """Whoever leaves amid a body asked for nothing, and it is no fault of ours."""
    said = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    route = "none" if path == "/lookup" else path  # read before it is known
    label = f'autotune_http_requests_total{{method="POST",route="{route}",status="408"}} '

    def left() -> float:
        found = [line for line in service.http.get("/metrics").text.splitlines() if line.startswith(label)]
        return float(found[0].removeprefix(label)) if found else 0.0

    before = left()
    with connected(service) as sock:
        sock.sendall(head(f"POST {path}", **said, Authorization=service.http.headers["Authorization"]))
        sock.sendall(b'e\r\n{"shapes": []}\r\n')
        time.sleep(0.2)
    until(lambda: left() == before + 1)
    assert 'status="500"' not in service.http.get("/metrics").text


READS = [
    "/lookup?input=1x64x56x56&weight=64x64x3x3&padding=1&flags=BEAM=2",
    "/lookup?input=1x64x56x56&weight=64x64x3x3&device=GPU",
    "/devices", "/winners/1/kernels", "/", "/tuning", "/map", "/compare", "/jobs", "/metrics", "/export",
    "/dashboard/check?input=1x64x56x56&weight=64x64x3x3&device=CPU", f"/shape/{key_of().digest}",
]  # fmt: skip


class Untouchable:
    """Devices that nobody may ask for."""

    def names(self) -> tuple[str, ...]:
        raise AssertionError("a reader looked at a device")

    def describe(self, name: str | None = None, flags: Mapping[str, str] | None = None) -> DeviceSpec:
        raise AssertionError("a reader opened a device")


def test_whoever_reads_opens_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.explanations.explain", lambda *_, **__: pytest.fail("a reader had kernels timed"))
    with open_store(tmp_path / "a.db") as store:
        store.decide(winner_of(key_of()))
        lanes = LocalLanes(OneDevice(), lambda _: NoRunner())
        app = create_app(store, lanes, Settings(db="a"), devices=Untouchable(), remembered=OneDevice())
        transport = httpx.ASGITransport(app=app)

        async def ask() -> None:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                for path in READS:
                    assert (await client.get(path)).status_code in (200, 404, 422), path
                many = {"shapes": [body(flags={"BEAM": "3"})]}
                assert (await client.post("/lookup", json=many)).status_code == 200
                assert "AssertionError" in (await client.post("/tune", json=body())).json()["detail"]

        asyncio.run(ask())


def test_devices_are_remembered_for_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    rules = {"BEAM": {"number": True, "default": "0"}, "LLVMOPT": {"number": False, "default": None}}
    down: list[str] = []

    def probe(_: object, *question: str) -> object:
        asked.append(question)
        if question[-1] in down:
            raise UnknownDeviceError(f"{question[-1]} hangs")
        machine = {"default": "CPU", "names": ["CPU", "CUDA"], "flags": rules}
        return machine if question == ("machine",) else {**CPU.to_json(), "device": question[1]}

    monkeypatch.setattr("api.devices._probe", probe)
    monkeypatch.setattr("api.devices.FIRST_LOOK_S", 0.05)
    devices = RememberedDevices(ProbedDevices())
    with pytest.raises(UnknownDeviceError, match="nobody has looked"):
        devices.describe()
    down.append("CUDA")
    devices.look()
    assert asked == [("machine",), ("describe", "CPU"), ("describe", "CUDA")]
    for number in range(50):
        assert devices.describe("cpu", {"BEAM": str(number)}).flags == ((("BEAM", str(number)),) if number else ())
    assert devices.describe(None, {"LLVMOPT": "0", "BEAM": "02"}).flags == (("BEAM", "2"), ("LLVMOPT", "0"))
    for name, says in (("CUDA", "CUDA hangs"), ("CPU:1", "not looked at"), ("METAL", "expected one of CPU, CUDA")):
        with pytest.raises(UnknownDeviceError, match=says):
            devices.describe(name)
    with pytest.raises(KeyFormatError, match="BEAM is a whole number"):
        devices.describe(None, {"BEAM": "two"})
    assert len(asked) == 3


def test_flags_are_read_as_tinygrad_reads_them() -> None:
    """From their text alone: the same as in a process that has them in its environment."""
    flags = {
        "BEAM": "02", "NOOPT": "1", "TC_OPT": "2", "DEFAULT_FLOAT": "half", "LLVMOPT": "0", "DMC": "1",
        "TC": "1", "PCONTIG": "0", "DEFAULT_INT": "int32",
    }  # fmt: skip
    environ = {**os.environ, "DEV": "CPU", **flags}
    told = subprocess.run(
        [sys.executable, "-P", PROBE, "describe", "CPU"], env=environ, capture_output=True, check=True
    )
    assert ProbedDevices().describe("CPU", flags) == DeviceSpec.from_json(json.loads(told.stdout)["answer"])


def test_headers_of_pages_and_answers(service: Served) -> None:
    """No script but ours runs, nobody frames a page, nothing is kept by a cache; each answer says what it is."""
    for path in ("/", "/tuning", "/map", "/compare", f"/shape/{key_of().digest}"):
        page = service.http.get(path)
        assert page.status_code == 200
        for name, value in HEADERS.items():
            assert page.headers[name] == value
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == (
            "'none'",
            "'self'",
            "'none'",
        )
        assert "unsafe" not in str(policy)
        assert "<script>" not in page.text
        assert " onclick=" not in page.text
        assert 'style="' not in page.text
    for path in ("/winners", "/static/dashboard.css", "/static/icon.svg", "/nothing", "/metrics", "/openapi.json"):
        headers = service.http.get(path).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
        assert "strict-transport-security" not in headers


def test_behind_tls_the_browser_is_told_to_stay_there(service: Served) -> None:
    """As a proxy on this machine passes it on: its own name and scheme."""
    proxied = {"Host": "autotune.test", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    assert service.http.get("/", headers=proxied).headers["strict-transport-security"] == "max-age=31536000"
    for origin, status in (
        ("https://autotune.test", 404),
        ("http://autotune.test", 403),
        ("https://autotune.test:8443", 403),
    ):
        answer = service.http.delete("/jobs/unknown", headers={**proxied, "Origin": origin})
        assert answer.status_code == status, origin
