"""What tests of the hook in a program share: one convolution, its winners, every kind of source, a clean process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from graphs import Array, kernel_count, normal
from http_service import service
from tinygrad import Tensor
from tinygrad.helpers import Context
from values import a_winner

import autotune
from autotune import bundle, decisions, runtime, warn
from autotune.sources import open_source
from autotune.winner import Winner
from db import open_store
from strategies.candidate import Candidate
from strategies.graph.device import describe_device
from strategies.key import ConvKey, Policy
from strategies.shape import ConvShape

ROOT = Path(__file__).parent.parent
SHAPE = ConvShape.of((1, 4, 12, 12), (4, 4, 3, 3), padding=1)
X, W = normal(*SHAPE.input_shape), normal(*SHAPE.weight_shape, seed=1)
FOUR, FUSED, DIRECT = (Candidate.of(name) for name in ("four_buffer", "single_fused", "direct"))


def key(**policy: Any) -> ConvKey:
    return ConvKey(shape=SHAPE, device=describe_device("CPU"), policy=Policy(**policy))


def winner(candidate: Candidate = FOUR, state: str = "verified", decided_at: float = 1.0, **policy: Any) -> Winner:
    return replace(a_winner(key(**policy), decided_at=decided_at, state=state), candidate=candidate)


def conv() -> Tensor:
    return X.conv2d(W, padding=1)


def count() -> int:
    return kernel_count(conv())


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has warned of nothing, looks for changes at every schedule, and gets its tinygrad back."""
    monkeypatch.setattr(warn, "_warned", set())
    monkeypatch.setattr(decisions, "POLL_S", 0.0)
    monkeypatch.delenv("AUTOTUNE_SOURCE", raising=False)
    with Context(NOOPT=1):  # compiling is most of the time here
        yield
    autotune.uninstall()


@pytest.fixture(name="patient")
def patient_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that must come may take longer than a program would wait: the machine is busy."""
    monkeypatch.setattr(runtime, "open_source", partial(open_source, timeout_s=10.0))


@pytest.fixture(scope="module", name="alone")
def tinygrad_alone() -> Array:
    with Context(NOOPT=1):
        return conv().numpy()


@contextmanager
def sqlite(directory: Path, *winners: Winner) -> Iterator[str]:
    path = directory / "autotune.db"
    with open_store(path) as store:
        for each in winners:
            store.decide(each)
    yield str(path)


@contextmanager
def exported(directory: Path, *winners: Winner) -> Iterator[str]:
    path = directory / "winners.json"
    bundle.write(path, winners)
    yield str(path)


@contextmanager
def served(directory: Path, *winners: Winner) -> Iterator[str]:
    known = {each.key.digest: each.to_json() for each in winners}

    def answer(request: BaseHTTPRequestHandler, body: Any) -> object:
        digests = [ConvKey.from_json(asked).digest for asked in body["keys"]]
        return {"winners": {digest: known[digest] for digest in digests if digest in known}, "digests": digests}

    with service(answer) as url:
        yield url


SOURCES = {"sqlite": sqlite, "json": exported, "http": served}
