"""JSON as RFC 8259 has it: no NaN, no infinity, no half characters, so that whatever is accepted can be answered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

READS = ("/lookup",)
"""What is asked for with POST and changes nothing."""


class StrictRequest(Request):
    """A request whose `json` refuses what Python's parser lets pass."""

    async def json(self) -> Any:
        """The body; raises json.JSONDecodeError, which becomes a problem document."""
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A route that reads its body with StrictRequest. One that writes takes one of the service's places for that."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI documents for custom routes."""
        handler = super().get_route_handler()
        writes = not (self.methods or set()) <= {"GET", "HEAD"} and self.path not in READS

        async def strict(request: Request) -> Response:
            strictly = StrictRequest(request.scope, request.receive)
            if not writes:
                return await handler(strictly)
            async with request.app.state.service.writes:
                return await handler(strictly)

        return strict


def parse(body: bytes) -> Any:
    """Raises json.JSONDecodeError for anything that is not strict JSON in UTF-8."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_constant, parse_float=_float)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError:
        raise
    except UnicodeError:
        raise json.JSONDecodeError("it is not text in UTF-8", "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from None
    except ValueError:  # more digits than Python converts
        raise json.JSONDecodeError("a number in it has thousands of digits", "", 0) from None
    return value


def _constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no JSON number", "", 0)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise json.JSONDecodeError(f"{text[:20]} is too large a number", "", 0)
    return value
