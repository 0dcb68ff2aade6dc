"""Small, valid values for tests. Child processes import this: it stays quick to import."""

from __future__ import annotations

from autotune.measurement import Kernel, Measurement, Status
from autotune.winner import Interval, Winner, WinnerState
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

CPU = DeviceSpec(device="CPU", arch="x86_64", renderer="ClangRenderer", cores=2, tinygrad="0.14.0", driver="clang 14")


def a_key(cout: int = 64, device: DeviceSpec = CPU) -> ConvKey:
    """A key per number of output channels."""
    return ConvKey(shape=ConvShape.of((1, 64, 56, 56), (cout, 64, 3, 3), padding=1), device=device)


def a_measurement(attempt: str, key: ConvKey | None = None, measured_at: float = 1.0) -> Measurement:
    return Measurement(
        key=key or a_key(), candidate=Candidate.of("hybrid_grid", tile=4), status=Status.OK, times_s=(0.001, 0.0011),
        yardstick_times_s=(0.002, 0.0021), kernels=(Kernel(name="r_64", device="CPU", ops=7),), error=1e-6,
        attempt=attempt, measured_at=measured_at,
    )  # fmt: skip


def a_winner(key: ConvKey | None = None, decided_at: float = 1.0, state: str = "verified", tile: int = 4) -> Winner:
    return Winner(
        key=key or a_key(), candidate=Candidate.of("hybrid_grid", tile=tile), state=WinnerState(state),
        time_s=Interval(median=0.001, low=0.0009, high=0.0011), default=Candidate.of("direct"),
        default_time_s=Interval(median=0.002, low=0.0019, high=0.0021),
        ratio=Interval(median=0.5, low=0.45, high=0.55), error=1e-6, workspace_bytes=1 << 20,
        times_s={"direct": 0.002}, provenance={"host": "here", "trials": 12}, decided_at=decided_at,
    )  # fmt: skip
