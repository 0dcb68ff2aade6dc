"""The hook's lookups over HTTP: one request, in time, and nothing taken on trust."""

from __future__ import annotations

import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from autotune.sources import HttpSource, SourceError, open_source
from tests.http_service import Answer, service
from tests.values import a_key, a_winner

KEYS = [a_key(4), a_key(8), a_key(16)]


def test_one_request_for_all_keys_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        seen.append((request.path, request.headers["Authorization"], body))
        return {"winners": {}, "digests": []}

    monkeypatch.setenv("AUTOTUNE_TOKEN", "secret\n")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # never for this machine
    with service(answer) as url:
        assert open_source(f"{url}/", timeout_s=10.0).lookup([*KEYS, KEYS[0]]) == {}
    assert seen == [("/lookup", "Bearer secret", {"keys": [key.to_json() for key in KEYS]})]


def test_a_token_that_is_none() -> None:
    with pytest.raises(SourceError, match="printable ASCII") as caught:
        open_source("http://127.0.0.1:8000", token="sec\nret")
    assert "ret" not in str(caught.value).replace("printable", "")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"", "expected JSON"), (b"{", "expected JSON"), (b"[]", "found another answer"), ({}, "found another answer"),
        ({"winners": []}, "found another answer"), (b'{"winners": NaN}', "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        ({"winners": {KEYS[0].digest: None}}, "found one that cannot be read"),
        ({"winners": {a_key(99).digest: a_winner(a_key(99)).to_json()}}, "found others: do not trust"),
        ({"winners": {KEYS[0].digest: a_winner(KEYS[1]).to_json()}}, "found others: do not trust"),
        (b" " * 20_000, "expected at most 10000 bytes"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used(said: object, expected: str) -> None:
    with service(lambda *_: said) as url:
        source = HttpSource(url, timeout_s=10.0, max_answer_bytes=10_000 if said == b" " * 20_000 else 1 << 20)
        with pytest.raises(SourceError, match=expected) as caught:
            source.lookup(KEYS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "advice"), [(401, "set AUTOTUNE_TOKEN"), (404, "check the address"), (500, "500")])
def test_a_status_that_is_no_answer(status: int, advice: str) -> None:
    with service(lambda request, _: request.send_error(status)) as url, pytest.raises(SourceError, match=advice):
        HttpSource(url, timeout_s=10.0).lookup(KEYS)


def test_the_token_goes_nowhere_else() -> None:
    reached: list[object] = []

    def redirect(request: BaseHTTPRequestHandler, _: object) -> None:
        request.send_response(302)
        request.send_header("Location", elsewhere)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with service(lambda *_: reached.append(1)) as elsewhere, service(redirect) as url:
        source = HttpSource(url, token="secret", timeout_s=10.0)
        with pytest.raises(SourceError, match="found 302"):
            source.lookup(KEYS)
    assert not reached


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        source = HttpSource(f"http://127.0.0.1:{free.getsockname()[1]}", timeout_s=5.0)
        with pytest.raises(SourceError, match=r"Connection refused.*check that `autotune serve` runs") as caught:
            source.lookup(KEYS)
    assert "\n" not in str(caught.value)


# Each takes about 20 s: its thread is left behind.


def _silent(_: BaseHTTPRequestHandler, __: object) -> object:
    time.sleep(20.0)
    return {"winners": {}}


def _trickling_header(request: BaseHTTPRequestHandler, _: object) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(90):  # http.client takes no more than a hundred
        request.wfile.write(f"X-{number}: 1\r\n".encode())
        time.sleep(0.2)


def _trickling_body(request: BaseHTTPRequestHandler, _: object) -> None:
    request.send_response(200)
    request.end_headers()
    for _number in range(90):
        request.wfile.write(b" ")
        time.sleep(0.2)


@pytest.mark.parametrize("slow", [_silent, _trickling_header, _trickling_body])
def test_a_slow_service_costs_the_timeout_in_all(slow: Answer) -> None:
    with service(slow) as url:
        source = HttpSource(url)
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"found none within 0\.3 s"):
            source.lookup(KEYS)
        assert 0.25 < time.monotonic() - started < 10.0


def test_a_service_that_comes_back() -> None:
    now_s, broken = [0.0], [True]

    def answer(request: BaseHTTPRequestHandler, _: object) -> object:
        return request.send_error(503) if broken[0] else {"winners": {KEYS[0].digest: a_winner(KEYS[0]).to_json()}}

    with service(answer) as url:
        source = HttpSource(url, timeout_s=10.0, clock=lambda: now_s[0])
        with pytest.raises(SourceError, match="503"):
            source.lookup(KEYS)
        before, broken[0] = source.version(), False
        now_s[0] = 5.0
        assert source.version() != before
        assert source.lookup(KEYS) == {KEYS[0].digest: a_winner(KEYS[0])}
