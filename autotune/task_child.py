"""The process behind `run_task`: `python -m autotune.task_child`. Answers one question and ends.

Over its two pipes, one JSON object a line:

    -> {"task": "inspect", "argument": {...}}
    <- {"event": "ready"}                    the device is open (or {"event": "unavailable", "reason": ...})
    <- {"event": "answer", "answer": ...}    (or {"event": "failed", "reason": ...})
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from autotune.child import open_device, start_sentinel

TASKS = {"inspect": "autotune.inspection", "phases": "autotune.phases", "survey": "autotune.survey"}
"""The modules whose `answer(argument)` is called."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if there was an answer."""
    parser = argparse.ArgumentParser(prog="autotune.task_child", description="For a tuner; not for the shell.")
    parser.add_argument("--requests", type=int, required=True, metavar="FD")
    parser.add_argument("--events", type=int, required=True, metavar="FD")
    parser.add_argument("--life", type=int, required=True, metavar="FD")
    pipes = parser.parse_args(arguments)
    start_sentinel(pipes.life, pipes.events)
    for descriptor in (pipes.requests, pipes.events, pipes.life):
        os.set_inheritable(descriptor, False)

    def emit(**event: Any) -> None:
        data = json.dumps(event).encode() + b"\n"
        while data:
            data = data[os.write(pipes.events, data) :]

    with open(pipes.requests, encoding="utf-8", closefd=False) as requests:
        question = json.loads(requests.readline())
    try:
        open_device()
    except Exception as error:  # noqa: BLE001 - drivers raise anything
        emit(event="unavailable", reason=one_line(error))
        return 1
    emit(event="ready")
    try:
        answer = importlib.import_module(TASKS[question["task"]]).answer(question["argument"])
    except Exception as error:  # noqa: BLE001 - so do compilers
        emit(event="failed", reason=one_line(error))
        return 1
    emit(event="answer", answer=answer)
    return 0


def one_line(error: Exception) -> str:
    """`ValueError: what it says`, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:1000]


if __name__ == "__main__":
    sys.exit(main())
