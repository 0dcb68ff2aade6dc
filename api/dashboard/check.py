"""What the form's fields mean, said while they are typed: the same functions decide that read a `POST /tune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.dashboard.jobs import FIELDS
from api.dashboard.words import shape_href, speedup
from api.devices import Devices, UnknownDeviceError
from api.keys import parse_numbers, parse_shape
from api.limits import expect_affordable
from api.problem import ProblemError
from api.settings import DEFAULT_BUDGET_S, Settings
from autotune.job import Budget, BudgetError
from autotune.space import DEFAULTS, Space
from autotune.store import Store
from strategies.key import ConvKey, KeyFormatError
from strategies.shape import ConvShape, JsonObject, ShapeError

DEFAULT_VALUES = {
    "padding": "0", "stride": "1", "dilation": "1", "groups": "1", "dtype": "float32",
    "budget": f"{DEFAULT_BUDGET_S:g}s",
}  # fmt: skip


def check(given: Mapping[str, str], devices: Devices, store: Store, settings: Settings) -> JsonObject:
    """Either `problem` with the `field` it is about, or what would be tuned: `says`, and the `body` to post."""
    fields = {name: given.get(name, "").strip()[:100] or DEFAULT_VALUES.get(name, "") for name in FIELDS}
    for name in ("input", "weight"):
        if not fields[name]:
            return {"field": name, "problem": "", "incomplete": True}
    try:
        shape = _shape(fields)
        expect_affordable([shape], settings)
        budget = Budget.parse(fields["budget"])
        key = ConvKey(shape=shape, device=devices.describe(fields["device"] or None))
    except BudgetError as error:
        return {"field": "budget", "problem": str(error)}
    except (UnknownDeviceError, KeyFormatError) as error:
        return {"field": "device", "problem": str(error)}
    except ProblemError as error:
        return {"field": "input", "problem": error.detail}
    except ShapeError as error:
        return {"field": _field_of(str(error)), "problem": str(error)}
    return {"says": _says(key, store), "known": _known(key, store), "body": _body(fields, key, budget)}


def _shape(fields: Mapping[str, str]) -> ConvShape:
    groups = parse_numbers("groups", fields["groups"])
    if not isinstance(groups, int):
        raise ShapeError(f"groups must be one whole number: got {fields['groups']!r}")
    return parse_shape(
        fields["input"], fields["weight"], padding=fields["padding"], stride=fields["stride"],
        dilation=fields["dilation"], groups=groups, dtype=fields["dtype"],
    )  # fmt: skip


def _field_of(problem: str) -> str:
    """The field that a message of ConvShape begins with; what relates several is shown at the weight."""
    first = problem.split(maxsplit=1)[0]
    return first if first in FIELDS and not problem.startswith("input has") else "weight"


def _says(key: ConvKey, store: Store) -> list[str]:
    output = "x".join(map(str, key.shape.output_shape))
    names = [item.name for item in Space.of(key).strategies]
    others = [name for name in names if name not in DEFAULTS]
    gain = f"{len(others)} strategies beside tinygrad's own apply" if others else "only tinygrad's own lowering applies"
    measured = len(store.measurements(key))
    goes_on = [f"{measured} measurements are kept from before: the search goes on from there"] if measured else []
    return [f"output {output}, {key.shape.macs:,} multiply-adds on {key.device.device}", gain, *goes_on]


def _known(key: ConvKey, store: Store) -> JsonObject | None:
    winner = store.winner(key)
    if winner is None:
        return None
    return {"href": shape_href(key), "text": f"{winner.candidate.strategy}: {speedup(winner)}"}


def _body(fields: Mapping[str, str], key: ConvKey, budget: Budget) -> JsonObject:
    shape = key.shape
    body: dict[str, Any] = {
        "input": list(shape.input_shape), "weight": list(shape.weight_shape),
        "padding": [side for pad in reversed(shape.padding) for side in pad], "stride": list(shape.stride),
        "dilation": list(shape.dilation), "groups": shape.groups, "dtype": shape.dtype, "budget": budget.seconds,
    }  # fmt: skip
    return {**body, "device": fields["device"]} if fields["device"] else body
