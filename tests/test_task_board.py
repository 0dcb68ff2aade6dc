"""What a fleet costs the database does not grow with its workers: tasks that lanes wait for are read together."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from databases import new_database
from served import until
from sqlalchemy import event, text
from values import CPU, a_key, a_measurement

from api.fleet import FleetLanes
from api.queue_runner import QueueRunner
from api.task_board import EVERY_S, TaskBoard
from autotune.fleet import Task, TaskState, Worker, queue_of
from autotune.job import Budget, Waiting, target_of
from autotune.runner import Request
from db import DatabaseError, DatabaseUnreachableError, open_store
from strategies.candidate import Candidate


def test_many_lanes_ask_as_often_as_one(tmp_path: Path) -> None:
    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        store.prepare_queue()
        for number in range(20):
            store.register(Worker(name=f"w{number}", device=CPU, about={"tinygrad-autotune": ""}))
        board, asked = TaskBoard(store.tasks), [0]
        requests = [
            Request(key=a_key(cout), candidates=(Candidate.of("hybrid_grid", tile=4),), rounds=1)
            for cout in range(1, 21)
        ]
        begun = threading.Barrier(21)

        def lane(number: int) -> bool:
            begun.wait(10)
            runner = QueueRunner(store, CPU, board=board)
            return runner.measure(requests[number])[0].attempt == f"m{number}"

        def counted(*_: object) -> None:
            asked[0] += 1

        with ThreadPoolExecutor(20) as threads:
            lanes = [threads.submit(lane, number) for number in range(20)]
            begun.wait(10)
            names = [store.post(queue_of(CPU), request) for request in requests]
            for name in names:
                store.begin(name, 1, "w")
            until(lambda: len(board._followed) == 20)  # what a lane posts itself is not counted
            event.listen(store._engine, "begin", counted)
            started = time.monotonic()
            time.sleep(1.5)
            took_s = time.monotonic() - started
            event.remove(store._engine, "begin", counted)
            assert 0 < asked[0] <= took_s / EVERY_S + 3
            for number, name in enumerate(names):
                assert store.deliver(name, 1, "w", [a_measurement(f"m{number}", requests[number].key)])
            assert all(waiting.result(10) for waiting in lanes)
        assert not board._followed


def test_the_lanes_of_a_service_share_a_board(tmp_path: Path) -> None:
    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        store.register(Worker(name="one", device=CPU))
        store.register(Worker(name="two", device=CPU))
        store.submit([a_key()], Budget(trials=1))
        offer = FleetLanes(store).offer([Waiting(target=target_of(CPU), device=CPU, keys=1, since=0.0)])
        boards = {id(getattr(lane.runner(False), "_board", None)) for lane in offer.lanes}
        assert (len(offer.lanes), len(boards)) == (2, 1)


def test_a_row_that_cannot_be_read_is_one_workers_or_one_tasks_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with new_database("postgresql", tmp_path) as address, open_store(address) as store:
        store.prepare_queue()
        for name in ("fine", "odd", "odder"):
            store.register(Worker(name=name, device=CPU))
        requests = [
            Request(key=a_key(cout), candidates=(Candidate.of("hybrid_grid", tile=4),), rounds=1) for cout in (1, 2, 3)
        ]
        names = [store.post(queue_of(CPU), request) for request in requests]
        for name, request in zip(names, requests, strict=True):
            assert store.begin(name, 1, "fine") == request
            assert store.deliver(name, 1, "fine", [a_measurement(name, request.key)])
        with store._writing() as connection:
            for statement in (
                """UPDATE workers SET device = '{"device": "CPU", "colour": "red"}' WHERE name = 'odd'""",
                "UPDATE workers SET about = '7' WHERE name = 'odder'",
                f"UPDATE attempts SET result = '[{{}}]' FROM tasks WHERE tasks.id = task_id AND name = '{names[0]}'",
                f"UPDATE tasks SET lost = '[7]' WHERE name = '{names[1]}'",
            ):
                connection.execute(text(statement))
        lanes = FleetLanes(store)
        for _ in range(2):
            offer = lanes.offer([Waiting(target=target_of(CPU), device=CPU, keys=1, since=0.0)])
        assert [lane.name for lane in offer.lanes] == ["fine"]
        assert sorted(record.args[0] for record in caplog.records if record.args) == ["odd", "odder"]  # once
        board = TaskBoard(store.tasks)
        with board.follow(names[0]), board.follow(names[1]), board.follow(names[2]):
            found = [board.look(name) for name in names]
        assert [task is not None and task.state for task in found] == [TaskState.DONE] * 3
        said = [task.error if task is not None else "" for task in found]
        assert "from worker fine, found KeyError" in said[0]
        assert ("from worker fine, found TypeError" in said[1], said[2]) == (True, "")


def test_a_failure_is_shared_for_a_while_and_then_tried_again() -> None:
    now, reads = [0.0], [0]

    def read(names: Collection[str]) -> dict[str, Task]:
        reads[0] += 1
        if reads[0] == 1:
            raise DatabaseUnreachableError("gone")
        return {name: Task(id=name, state=TaskState.QUEUED, attempt=1) for name in names if name != "missing"}

    board = TaskBoard(read, clock=lambda: now[0])
    with board.follow("a"), board.follow("missing"):
        for _ in range(3):
            with pytest.raises(DatabaseError, match="gone"):
                board.look("a")
        assert reads == [1]
        now[0] += 1.0
        assert board.look("a") is not None
        assert board.look("missing") is None
        assert reads == [2]
        with board.follow("new"):  # posted since: not found is not the same as not asked for
            assert board.look("new") is not None
        assert reads == [3]
