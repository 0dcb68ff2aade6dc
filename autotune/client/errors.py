"""How asking a service goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ServiceError(RuntimeError):
    """The service answered with a problem document: `status`, its `detail` as the message, and all of it."""

    def __init__(self, status: int, detail: str, problem: Mapping[str, Any]) -> None:
        super().__init__(detail)
        self.status, self.problem = status, dict(problem)


class ServiceUnreachableError(RuntimeError):
    """Nobody answered, or what answered is not the service."""
