"""The client, synchronous and asynchronous: the same questions, answers, and words for what goes wrong."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, get_type_hints

import pytest
from served import Served, body, key_of, served, winner_of

from autotune.client import AsyncClient, Client, ServiceError, ServiceUnreachableError
from autotune.winner import WinnerState
from tests.http_service import service as answering


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("client") / "a.db") as found:
        yield found


def faces() -> list[str]:
    return sorted(name for name in vars(Client) if not name.startswith("_"))


def test_both_faces_take_the_same() -> None:
    assert faces() == sorted(name for name in vars(AsyncClient) if not name.startswith("_"))
    for name in faces():
        ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
        returned, awaited = get_type_hints(ours)["return"], get_type_hints(theirs)["return"]
        assert str(returned).rpartition("Iterator")[2] == str(awaited).rpartition("Iterator")[2], name
        assert inspect.getdoc(ours) == inspect.getdoc(theirs), name
        assert inspect.iscoroutinefunction(theirs) or inspect.isasyncgenfunction(theirs), name


def test_a_job_and_its_winner(service: Served) -> None:
    async def use(client: AsyncClient) -> None:
        job = await client.tune(body(48))
        states = [found["state"] async for found in client.follow(job["id"], poll_s=0.02)]
        assert states[-1] == "done"
        found = await client.lookup_keys([key_of(48)])
        assert found[key_of(48).digest].candidate.strategy == "four_buffer"
        numbers = {winner.key: number async for number, winner in client.winners(device="CPU")}
        pinned = await client.set_state(numbers[key_of(48)], WinnerState.PINNED)
        assert pinned.state is WinnerState.PINNED
        devices, health = await asyncio.gather(client.devices(), client.health())
        assert (devices["default"], health["status"]) == ("CPU", "ok")
        assert (await client.cancel(job["id"]))["state"] == "done"
        with pytest.raises(ServiceError, match="groups") as refused:
            await client.tune(body(groups=7))
        assert refused.value.status == 422
        with pytest.raises(ServiceError, match="no winner"):
            await client.lookup({"input": "1x3x9x9", "weight": "3x3x3x3"})

    asyncio.run(use(AsyncClient(service.url)))
    assert dict(Client(service.url).winners()).keys()


def test_waiting_blocks_no_loop_and_ends_when_it_is_cancelled() -> None:
    async def use(url: str) -> float:
        asked = asyncio.create_task(AsyncClient(url, timeout_s=20).health())
        for _ in range(5):
            await asyncio.sleep(0.01)  # the loop turns meanwhile
        assert not asked.done()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        cancelled_at = asyncio.run(use(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert time.monotonic() - cancelled_at < 5, "the end of the loop waited for an answer that nobody needs"


@pytest.mark.parametrize(
    ("said", "expected"),
    [(b"<html>", "expected JSON"), ([], "found another answer"), ({"winners": {"a": 1}}, "cannot be read")],
)
def test_what_is_not_the_service_is_told_in_one_line(said: object, expected: str) -> None:
    with answering(lambda *_: said) as url:
        for ask in (Client(url).lookup_keys, lambda keys: asyncio.run(AsyncClient(url).lookup_keys(keys))):
            with pytest.raises(ServiceUnreachableError, match=expected) as caught:
                ask([key_of()])
            assert url in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "KeyError"), ({"winner": {}}, "cannot be read"), ({"winner": None}, "cannot be read"), ([], "another"),
    ],
)  # fmt: skip
def test_a_lookup_without_a_winner_is_no_answer(said: object, expected: str) -> None:
    with answering(lambda *_: said) as url, pytest.raises(ServiceUnreachableError, match=expected):
        Client(url).lookup({})


@pytest.mark.parametrize("following", [0, -1, "100", 1.5, [], True])
def test_pages_that_never_end_are_not_walked(following: object) -> None:
    with (
        answering(lambda *_: {"winners": [], "next": following}) as url,
        pytest.raises(ServiceUnreachableError, match="found another answer"),
    ):
        list(Client(url).winners())


def test_a_winner_whose_number_is_none_is_no_answer() -> None:
    winner = winner_of(key_of()).to_json()
    with (
        answering(lambda *_: {"winners": [{"id": "x", "winner": winner}], "next": None}) as url,
        pytest.raises(ServiceUnreachableError, match="found another answer"),
    ):
        list(Client(url).winners())


def test_a_refusal_that_trickles_in_is_not_waited_for() -> None:
    def trickle(handler: BaseHTTPRequestHandler, _: object) -> None:
        handler.send_response(500)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    with answering(trickle) as url:
        started = time.monotonic()
        with pytest.raises(ServiceUnreachableError, match="found 500"):
            Client(url, timeout_s=2.0).health()
        assert time.monotonic() - started < 8  # all of it takes 10 s


def test_following_outlasts_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, locked = ServiceUnreachableError("nobody there"), ServiceError(503, "locked", {})
    script: list[Any] = [{"state": "running"}, gone, locked, {"state": "done"}]

    async def job(_: AsyncClient, __: str) -> Any:
        answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(_: float) -> None:
        pass

    async def states() -> list[str]:
        followed = AsyncClient("http://127.0.0.1:1").follow("x", sleep=sleep, clock=lambda: 0.0)
        return [found["state"] async for found in followed]

    monkeypatch.setattr(AsyncClient, "job", job)
    assert asyncio.run(states()) == ["running", "done"]
    script = [ServiceError(404, "no job", {})]
    with pytest.raises(ServiceError, match="no job"):
        asyncio.run(states())
