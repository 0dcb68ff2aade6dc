"""Which lowerings of which convolutions the stand-in executes: pairwise for every commit, in full on demand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.space import Space
from strategies.candidate import Candidate
from strategies.graph.matmul import Blocking
from strategies.key import ConvKey, DeviceSpec
from strategies.registry import Strategy, get_strategy, strategies
from strategies.shape import ConvShape
from strategies.transform import TILES

# Of the notes: three shapes (batch, channels, channels, height, width), then 16 channels at five sizes.
NOTES = {f"{c}c {size}": ((1, c, size, size), (c, c, 3, 3)) for c, size in ((8, 32), (16, 32), (32, 64))}
SIZES = {f"16c {size}": ((1, 16, size, size), (16, 16, 3, 3)) for size in (24, 48, 64, 96)}
OTHERS = {
    "odd": ((1, 5, 13, 11), (7, 5, 3, 3)),
    "grouped": ((1, 8, 10, 10), (12, 4, 3, 3)),
    "batched": ((3, 8, 9, 16), (8, 8, 3, 3)),
}
SHAPES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = NOTES | SIZES | OTHERS
DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One program on METAL. `tensor_cores`: whether tinygrad may use simdgroup matrices; `frozen`: whether the weights
    are promised not to change (Policy.frozen_weights), so that they are transformed beforehand."""

    shape: str
    dtype: str
    tensor_cores: bool
    candidate: Candidate
    frozen: bool = False

    def __str__(self) -> str:
        cores = "tensor cores" if self.tensor_cores else "no tensor cores"
        weights = ", frozen weights" if self.frozen else ""
        return f"{self.shape}, {self.dtype}, {cores}{weights}: {self.candidate}"

    @property
    def conv(self) -> ConvShape:
        """Padded by one; in groups where the weight has fewer channels."""
        x, w = SHAPES[self.shape]
        return ConvShape.of(x, w, padding=1, groups=x[1] // w[1], dtype=self.dtype)


METAL = DeviceSpec(device="METAL", arch="Apple9", renderer="MetalRenderer")
NAMES = tuple(
    item.name for item in strategies()
    if any(item.applies(ConvKey(shape=ConvShape.of(*NOTES["16c 32"], padding=1, dtype=dtype), device=METAL))
           for dtype in DTYPES)
)  # fmt: skip
"""Strategies that a tuner may try on METAL."""
FACTORS: Mapping[str, Sequence[Any]] = {
    "shape": ("8c 32", "16c 32", "16c 24", *OTHERS),
    "strategy": NAMES,
    "tile": TILES,
    "dtype": DTYPES,
    "tensor_cores": (True, False),
    "frozen": (False, True),
}


def pairwise(seed: int = 0) -> list[Case]:
    """Every two values of FACTORS meet in some case; every preset and every value of every parameter occurs."""
    rng = random.Random(seed)
    rows = [_case(row, rng) for row in covering(FACTORS, rng)] + list(_presets())
    return rows + list(_missing(rows, rng))


def full(seed: int = 0) -> Iterator[Case]:
    """Every shape with every strategy and tile, in both types, with tensor cores and without; every blocking of the
    product on every shape, the rest of the parameters at random; and with frozen weights every strategy on every
    shape."""
    rng = random.Random(seed)
    for shape in SHAPES:
        for strategy, tile, dtype, cores in itertools.product(NAMES, TILES, DTYPES, (True, False)):
            if tile == TILES[0] or _takes(strategy, "tile"):
                yield _case(_row(shape, strategy, tile, dtype, cores), rng)
        for strategy, blocking in BLOCKINGS.items():
            yield from _blockings(shape, strategy, blocking, rng)
    for shape, strategy in itertools.product(SHAPES, NAMES):
        row = _row(shape, strategy, rng.choice(TILES), rng.choice(DTYPES), rng.random() < 0.5)
        yield _case(row | {"frozen": True}, rng)


BLOCKINGS = {
    "blocked": ("cout_block", "tile_block", "channel_block"),
    "shared_memory": ("cout_block", "tile_block", "depth"),
    "implicit_gemm": ("cout_block", "window_block", "depth"),
}
"""The parameters that block a strategy's product."""


def _blockings(shape: str, strategy: str, names: Sequence[str], rng: random.Random) -> Iterator[Case]:
    item = get_strategy(strategy)
    choices = {p.name: p.choices for p in item.parameters}
    for blocking in itertools.product(*(choices[name] for name in names)):
        values = _possible(item, rng, dict(zip(names, blocking, strict=True)), shape)
        yield Case(
            shape=shape, dtype=rng.choice(DTYPES), tensor_cores=rng.random() < 0.5, candidate=item.candidate(values)
        )


def covering(factors: Mapping[str, Sequence[Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Rows in which any two values of two factors meet: greedily, the best of some random rows that hold a pair which
    is still missing."""
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(factors, 2) for x in factors[a] for y in factors[b]}
    rows = []
    while missing:
        pair = min(missing, key=repr)
        tries = [{name: rng.choice(values) for name, values in factors.items()} | dict(pair) for _ in range(20)]
        best = max(tries, key=lambda row: len(_pairs(row) & missing))
        missing -= _pairs(best)
        rows.append(best)
    return rows


def _pairs(row: Mapping[str, Any]) -> set[Any]:
    return set(itertools.combinations(row.items(), 2))


def _row(shape: str, strategy: str, tile: int, dtype: str, tensor_cores: bool) -> dict[str, Any]:
    return {
        "shape": shape, "strategy": strategy, "tile": tile, "dtype": dtype, "tensor_cores": tensor_cores,
        "frozen": False,
    }  # fmt: skip


def _case(row: Mapping[str, Any], rng: random.Random) -> Case:
    item = get_strategy(row["strategy"])
    values = _possible(item, rng, {"tile": row["tile"]} if _takes(item.name, "tile") else {}, row["shape"])
    return Case(
        shape=row["shape"], dtype=row["dtype"], tensor_cores=row["tensor_cores"], frozen=row["frozen"],
        candidate=item.candidate(values),
    )  # fmt: skip


def _presets() -> Iterator[Case]:
    """What strategies declare as good: a search measures these first."""
    x, w = SHAPES["16c 32"]
    for candidate in Space.of(ConvKey(shape=ConvShape.of(x, w, padding=1), device=METAL)).presets:
        if hasattr(get_strategy(candidate.strategy).params, "presets"):
            yield Case(shape="16c 32", dtype="float32", tensor_cores=True, candidate=candidate)


def _missing(cases: Sequence[Case], rng: random.Random) -> Iterator[Case]:
    """One case more for each value of a parameter that no case has, as many of them at once as can be."""
    seen = {(case.candidate.strategy, *pair) for case in cases for pair in case.candidate.params}
    for item in map(get_strategy, NAMES):
        while left := {p.name: [v for v in p.choices if (item.name, p.name, v) not in seen] for p in item.parameters}:
            if not any(left.values()):
                break
            values = _possible(
                item, rng, {name: rng.choice(values) for name, values in left.items() if values}, "16c 32"
            )
            candidate = item.candidate(values)
            before = len(seen)
            seen |= {(item.name, *pair) for pair in candidate.params}
            if len(seen) == before:  # a parameter that means nothing beside these values
                seen |= {(item.name, name, value) for name, value in values.items()}
                continue
            yield Case(shape="16c 32", dtype="float32", tensor_cores=True, candidate=candidate)


def _possible(item: Strategy, rng: random.Random, fixed: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """`fixed` and the other parameters at random: such that there is a kernel, if some of several tries find one."""
    weight = SHAPES[shape][1]
    for _ in range(200):
        values = {p.name: rng.choice(p.choices) for p in item.parameters} | dict(fixed)
        if _fits(item.name, values, weight):
            break
    return values


def _fits(strategy: str, values: Mapping[str, Any], weight: Sequence[int]) -> bool:
    """Whether a product in blocks has these blocks, and as many parts; whatever else is no such product."""
    if strategy == "shared_memory":
        by, whole = _blocking(values, "tile_block", "tiles"), weight[1] % (values["depth"] * values["parts"]) == 0
    elif strategy == "implicit_gemm":
        by, whole = _blocking(values, "window_block", "windows"), values["parts"] <= weight[1] * 9 // values["depth"]
    else:
        return True
    return whole and by.fault() is None


def _blocking(values: Mapping[str, Any], columns: str, of_thread: str) -> Blocking:
    return Blocking(
        rows=values["cout_block"], columns=values[columns], depth=values["depth"], thread_rows=values["couts"],
        thread_columns=values[of_thread], ahead=values["ahead"], parts=values["parts"],
    )  # fmt: skip


def _takes(strategy: str, parameter: str) -> bool:
    return any(p.name == parameter for p in get_strategy(strategy).parameters)
