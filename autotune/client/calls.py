"""What a service can be asked, each as one value: the request, and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, cast
from urllib.parse import quote, urlencode

from autotune.bundle import BundleError, parse_json, parse_winner
from autotune.client.errors import ServiceUnreachableError
from autotune.winner import Winner, WinnerState
from strategies.key import ConvKey
from strategies.shape import JsonObject

PAGE = 1000
"""Winners asked for at once."""

T = TypeVar("T")


class JobDocument(TypedDict):
    """A job as the service describes it; times are seconds since the epoch, those that have not come are None."""

    id: str
    name: str
    state: str
    done_keys: int
    total_keys: int
    progress: JsonObject
    budget: JsonObject
    error: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    retry_of: str | None
    keys: NotRequired[list[JsonObject]]
    """What `ConvKey.from_json` takes; absent where many jobs are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some winners with their ids, and from where to ask for more (None: these were the last)."""

    winners: tuple[tuple[int, Winner], ...]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request, and `read`, which makes its answer out of JSON."""

    method: str
    path: str
    read: Callable[[Any], T]
    body: bytes | None = None

    def answer(self, data: bytes, url: str) -> T:
        """Raises ServiceUnreachableError for what the service (at `url`) would never say."""
        try:
            return self.read(parse_json(data))
        except BundleError as error:
            raise ServiceUnreachableError(f"{url} is not the service, or another release of it: {error}") from None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ServiceUnreachableError(
                f"expected what answers {self.method} {self.path.partition('?')[0]} from {url}, found another answer "
                f"({type(error).__name__}: {error}): check the address and the release there"
            ) from None


def tune(body: Mapping[str, Any]) -> Call[JobDocument]:
    """`POST /tune`."""
    return Call(method="POST", path="/tune", body=_json(body), read=_job)


def job(job_id: str) -> Call[JobDocument]:
    """`GET /jobs/{id}`."""
    return Call(method="GET", path=_job_path(job_id), read=_job)


def cancel(job_id: str) -> Call[JobDocument]:
    """`DELETE /jobs/{id}`."""
    return Call(method="DELETE", path=_job_path(job_id), read=_job)


def lookup(query: Mapping[str, str]) -> Call[JsonObject]:
    """`GET /lookup`."""
    return Call(method="GET", path=f"/lookup?{urlencode(query)}", read=_found)


def lookup_keys(keys: Iterable[ConvKey]) -> Call[dict[str, Winner]]:
    """`POST /lookup`: winners by digest, of these keys and of no others."""
    wanted = {key.digest: key for key in keys}
    body = _json({"keys": [key.to_json() for key in wanted.values()]})
    return Call(method="POST", path="/lookup", body=body, read=lambda data: _winners_of(data, wanted))


def winners(*, device: str | None, offset: int) -> Call[Page]:
    """`GET /winners`: one page."""
    query = {"limit": str(PAGE), "offset": str(offset), **({"device": device} if device else {})}
    return Call(method="GET", path=f"/winners?{urlencode(query)}", read=lambda data: _page(data, offset))


def kernels(winner_id: int, *, source: bool) -> Call[JsonObject]:
    """`POST /winners/{id}/kernels`."""
    path = f"/winners/{winner_id}/kernels?source={str(source).lower()}"
    return Call(method="POST", path=path, read=_object)


def set_state(winner_id: int, state: WinnerState) -> Call[Winner]:
    """`PATCH /winners/{id}`."""
    body = _json({"state": str(state)})
    return Call(method="PATCH", path=f"/winners/{winner_id}", body=body, read=lambda data: parse_winner(data["winner"]))


def document(path: str) -> Call[JsonObject]:
    """`GET` of what says something about the service itself: `/healthz`, `/readyz`, `/token`, `/devices` and so on."""
    return Call(method="GET", path=path, read=_object)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _object(data: Any) -> JsonObject:
    if not isinstance(data, dict):
        raise TypeError(f"a {type(data).__name__}")
    return data


def _job(data: Any) -> JobDocument:
    found = _object(data)
    _ = found["id"], found["state"], found["progress"]  # what every caller reads: better missed here
    return cast("JobDocument", found)


def _found(data: Any) -> JsonObject:
    found = _object(data)
    parse_winner(found["winner"])
    return found


def _page(data: Any, offset: int) -> Page:
    found = tuple((int(item["id"]), parse_winner(item["winner"])) for item in _object(data)["winners"])
    following = data["next"]
    if following is not None and not (type(following) is int and following > offset):
        raise TypeError(f"a page after {offset} at {following!r}")  # who believed it would ask for ever
    return Page(winners=found, next=following)


def _winners_of(data: Any, wanted: Mapping[str, ConvKey]) -> dict[str, Winner]:
    found = {digest: parse_winner(item) for digest, item in _object(_object(data)["winners"]).items()}
    for digest, winner in found.items():
        if digest not in wanted or winner.key.digest != digest:
            raise BundleError(f"expected winners of the keys asked for, found others: do not trust it ({winner.key})")
    return found
