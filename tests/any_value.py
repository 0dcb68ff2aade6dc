"""Hypothesis strategies for any value that the tuner hands around."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from autotune.bundle import MAX_TIME_S
from autotune.measurement import Kernel, Measurement, Status
from autotune.winner import Interval, Winner, WinnerState
from strategies.candidate import Candidate, KernelOptions
from strategies.flags import FLAG_VALUE, KERNEL_FLAGS
from strategies.key import ConvKey, DeviceSpec, Policy
from strategies.shape import DTYPES, ConvShape

texts = st.text(max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**62)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
flags = st.dictionaries(st.sampled_from(KERNEL_FLAGS), st.from_regex(FLAG_VALUE, fullmatch=True), max_size=3)
devices = st.builds(
    DeviceSpec,
    device=texts, arch=texts, renderer=texts, cores=counts, tinygrad=texts, driver=texts, os=texts, compiler=texts,
    flags=flags.map(lambda chosen: tuple(sorted(chosen.items()))),
)  # fmt: skip
policies = st.builds(
    Policy,
    max_error=st.none() | st.floats(min_value=1e-12, max_value=1.0), allow_tf32=st.booleans(),
    frozen_weights=st.booleans(), max_workspace_bytes=st.none() | counts,
)  # fmt: skip


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    dims, small = draw(st.integers(1, 2)), st.integers(1, 4)
    groups = draw(small)
    per_dim = st.tuples(*[small] * dims)
    return ConvShape(
        batch=draw(small), cin=groups * draw(small), cout=groups * draw(small), groups=groups,
        spatial=draw(st.tuples(*[st.integers(16, 40)] * dims)), kernel=draw(per_dim), stride=draw(per_dim),
        dilation=draw(per_dim), padding=draw(st.tuples(*[st.tuples(small, small)] * dims)),
        dtype=draw(st.sampled_from(DTYPES)), acc_dtype=draw(st.sampled_from(DTYPES)),
    )  # fmt: skip


keys = st.builds(ConvKey, shape=shapes(), device=devices, policy=policies)
numbers = st.none() | st.integers()
options = st.builds(
    KernelOptions,
    axes=texts,
    options=st.lists(st.tuples(texts, numbers, numbers | st.lists(st.integers()).map(tuple)), max_size=2).map(tuple),
)
candidates = st.builds(
    Candidate,
    strategy=texts,
    params=st.dictionaries(texts, st.integers() | texts | st.booleans(), max_size=3).map(
        lambda params: tuple(sorted(params.items()))
    ),
    kernel_options=st.dictionaries(texts, options, max_size=2).map(lambda stages: tuple(sorted(stages.items()))),
)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
intervals = st.builds(Interval, median=positive, low=positive, high=positive)
winners = st.builds(
    Winner,
    key=keys, candidate=candidates, state=st.sampled_from(WinnerState), time_s=intervals, default=candidates,
    default_time_s=intervals, ratio=intervals, error=st.none() | finite, workspace_bytes=counts,
    times_s=st.dictionaries(texts, finite, max_size=3), provenance=json_objects,
    decided_at=st.floats(0, MAX_TIME_S),
)  # fmt: skip
kernels = st.builds(
    Kernel, name=texts, device=texts, ops=counts, bytes=counts, source_bytes=counts, median_s=st.none() | finite
)
times = st.lists(finite, max_size=3).map(tuple)
measurements = st.builds(
    Measurement,
    key=keys, candidate=candidates, status=st.sampled_from(Status), reason=texts, times_s=times,
    yardstick_times_s=times, compile_s=finite, error=st.none() | finite | st.just(math.inf),
    error_bound=st.none() | finite, workspace_bytes=counts, kernels=st.lists(kernels, max_size=2).map(tuple),
    fingerprint=texts, conditions=json_objects, attempt=texts, measured_at=finite,
)  # fmt: skip
