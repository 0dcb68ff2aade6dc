"""What requests may say. What a convolution is, `ConvShape` decides; here only who may send what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from api.settings import DEFAULT_BUDGET_S, MAX_BUDGET_S, MAX_SHAPES, MAX_TRIALS
from api.text import one_line
from autotune.job import MAX_PRIORITY, Budget, BudgetError, Terms
from strategies.key import Policy

MAX_INT = 2**63 - 1
MAX_SECONDS = 1e9
"""Of any time that a request names: beyond it a deadline is none."""

_NUMBERS = {"type": "array", "items": {"type": "integer"}}
Dims = Annotated[Any, WithJsonSchema({**_NUMBERS, "minItems": 3, "maxItems": 4, "examples": [[1, 64, 56, 56]]})]
PerDim = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "integer"}, _NUMBERS]})]
Padding = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "integer"}, _NUMBERS, {"type": "array", "items": _NUMBERS}]})
]
BudgetText = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string", "examples": ["60s"]}, {"type": "number"}, {"type": "null"}]})
]
Flags = Annotated[
    dict[Annotated[str, Field(max_length=32)], Annotated[str, Field(max_length=32)]], Field(max_length=32)
]


class Body(BaseModel):
    """Strict: no text for a number, no member that nobody reads."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class PolicyBody(Body):
    """What the caller allows and promises; see `Policy`."""

    max_error: Annotated[float, Field(gt=0)] | None = None
    allow_tf32: bool = False
    frozen_weights: bool = False
    max_workspace_bytes: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None

    def policy(self) -> Policy:
        """As the value that keys hold."""
        return Policy(**self.model_dump())


class ShapeBody(Body):
    """One convolution, as tinygrad writes it. Without a device: the service's default one."""

    input: Dims
    weight: Dims
    padding: Padding = 0
    stride: PerDim = 1
    dilation: PerDim = 1
    groups: int = 1
    dtype: str = "float32"
    acc_dtype: str = ""
    device: str | None = None
    flags: Flags | None = Field(default=None, description="Codegen flags of the caller, such as BEAM; none: ours")
    policy: PolicyBody = Field(default_factory=PolicyBody)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `ConvShape.of`."""
        names = ("padding", "stride", "dilation", "groups", "dtype", "acc_dtype")
        return {name: getattr(self, name) for name in names}


def seconds_of(value: Any, what: str) -> float | None:
    """`60s`, `2m`, `1h` or a number of seconds above 0; None stays None. Raises BudgetError."""
    if value is None:
        return None
    found = Budget.parse(value[:20]).seconds if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise BudgetError(f"{what} is a time like 60s or seconds: got {one_line(repr(found), 40)}")
    if found <= 0:  # before float(): JSON has numbers beyond it, on both sides
        raise BudgetError(f"{what} in seconds must be above 0: got {one_line(repr(found), 40)}")
    return float(min(found, MAX_SECONDS))


class BudgetBody(Body):
    """How long to search, per shape: `60s`, `2m`, `1h` or seconds, and at most `trials` candidates."""

    budget: BudgetText = None
    trials: int | None = None

    def parsed(self) -> Budget:
        """Raises BudgetError."""
        seconds = seconds_of(self.budget, "a budget")
        if seconds is None and self.trials is None:
            seconds = DEFAULT_BUDGET_S
        if seconds is not None and seconds > MAX_BUDGET_S:
            raise BudgetError(f"a budget may have {MAX_BUDGET_S:.0f} seconds per shape: got more; send less")
        if self.trials is not None and self.trials > MAX_TRIALS:
            raise BudgetError(f"a budget may have {MAX_TRIALS} trials per shape: got more; send fewer")
        return Budget(seconds=seconds, trials=self.trials)


class TermsBody(Body):
    """When: higher priorities first; not after `within` (`2h` or seconds from now); with `idle` only while no program
    that asked for tuning runs on the device."""

    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    within: BudgetText = None
    idle: bool = False

    def terms(self, now: float) -> Terms:
        """With the deadline in seconds since the epoch. Raises BudgetError."""
        within_s = seconds_of(self.within, "within")
        return Terms(priority=self.priority, deadline=None if within_s is None else now + within_s, idle=self.idle)


class TuneOne(ShapeBody, BudgetBody, TermsBody):
    """One shape and its budget."""

    def shape_bodies(self) -> list[ShapeBody]:
        """The shapes asked for."""
        return [self]


class TuneMany(BudgetBody, TermsBody):
    """Many shapes with one budget each."""

    shapes: Annotated[list[ShapeBody], Field(min_length=1, max_length=MAX_SHAPES)]

    def shape_bodies(self) -> list[ShapeBody]:
        """The shapes asked for."""
        return self.shapes


class TuneKeys(BudgetBody, TermsBody):
    """Many convolutions as the runtime hook has them: whole keys, whose device may be one of a worker elsewhere."""

    keys: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_SHAPES)]


def _one_or_many(body: Any) -> str:
    for many in ("shapes", "keys"):
        if (body.get(many) if isinstance(body, dict) else getattr(body, many, None)) is not None:
            return f"|{many}"
    return "|one"


TuneBody = Annotated[
    Annotated[TuneOne, Tag("|one")] | Annotated[TuneMany, Tag("|shapes")] | Annotated[TuneKeys, Tag("|keys")],
    Discriminator(_one_or_many),
]


class LookupBody(Body):
    """Many at once: whole keys, as the hook has them, or shapes."""

    keys: Annotated[list[dict[str, Any]], Field(max_length=MAX_SHAPES)] = Field(default_factory=list)
    shapes: Annotated[list[ShapeBody], Field(max_length=MAX_SHAPES)] = Field(default_factory=list)


class StateBody(Body):
    """What a person may decide about a winner."""

    state: Literal["pinned", "revoked", "banned", "verified"]


class LookupQuery(BaseModel):
    """A shape in a URL: sizes as `1x64x56x56`, lists as `1,1`, flags as `BEAM=2,NOOPT=1`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    input: Annotated[str, Field(max_length=100, examples=["1x64x56x56"])]
    weight: Annotated[str, Field(max_length=100, examples=["64x64x3x3"])]
    padding: Annotated[str, Field(max_length=100)] = "0"
    stride: Annotated[str, Field(max_length=100)] = "1"
    dilation: Annotated[str, Field(max_length=100)] = "1"
    groups: int = 1
    dtype: str = "float32"
    acc_dtype: str = ""
    device: str | None = None
    flags: Annotated[str, Field(max_length=500)] | None = None
    max_error: Annotated[float, Field(gt=0)] | None = None
    allow_tf32: bool = False
    frozen_weights: bool = False
    max_workspace_bytes: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
