"""Keys: their digests outlive processes and exports, and anything else is refused."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
from any_value import keys
from graphs import examples
from hypothesis import given
from tinygrad.helpers import Context

from strategies.graph.device import describe_device, processor_in
from strategies.key import ConvKey, DeviceSpec, KeyFormatError, Policy
from strategies.shape import ConvShape, ShapeError

SHAPE = ConvShape.of((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
DEVICE = DeviceSpec(
    device="CPU", arch="x86_64,native", renderer="ClangRenderer", cores=2, tinygrad="0.14.0", flags=(("BEAM", "2"),)
)
KEY = ConvKey(shape=SHAPE, device=DEVICE)


def test_the_digest_is_settled() -> None:
    """Databases and exports hold it: whoever changes what is digested raises KEY_VERSION and this."""
    assert KEY.digest == "da9070781384a5e69cf640cc3b86c5fc"


def test_the_digest_in_another_process() -> None:
    program = (
        "import sys, json; from strategies.key import ConvKey; print(ConvKey.from_json(json.loads(sys.argv[1])).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(KEY.to_json())], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == KEY.digest


@pytest.mark.parametrize("name", [f.name for f in fields(DeviceSpec)])
def test_what_of_the_device_is_in_the_digest(name: str) -> None:
    other: Any = {"cores": 3, "flags": (("BEAM", "1"),)}.get(name, "another")
    changed = replace(KEY, device=replace(DEVICE, **{name: other}))
    assert (changed.digest == KEY.digest) == (name in ("driver", "os", "compiler"))
    assert changed.device.surroundings != DEVICE.surroundings or changed.digest != KEY.digest


@pytest.mark.parametrize(
    "policy",
    [Policy(max_error=1e-6), Policy(allow_tf32=True), Policy(frozen_weights=True), Policy(max_workspace_bytes=0)],
)
def test_the_policy_is_in_the_digest(policy: Policy) -> None:
    assert replace(KEY, policy=policy).digest != KEY.digest


def test_one_digest_for_all_spellings_of_a_shape() -> None:
    wide = ConvShape.of((1, 4, 6, 20), (8, 4, 1, 3), padding=(0, 1))
    flat = ConvShape.of((6, 4, 20), (8, 4, 3), padding=1)
    assert ConvKey(shape=wide, device=DEVICE).digest == ConvKey(shape=flat, device=DEVICE).digest


def test_the_difference_names_fields() -> None:
    other = ConvKey(
        shape=ConvShape.of((1, 64, 28, 56), (64, 64, 3, 3), padding=1), device=replace(DEVICE, flags=(("NOOPT", "1"),))
    )
    assert KEY.difference(other) == {
        "shape.spatial": ([56, 56], [28, 56]), "device.flags.BEAM": ("2", None), "device.flags.NOOPT": (None, "1"),
    }  # fmt: skip
    assert KEY.difference(KEY) == {}


@given(keys)
@examples(50)
def test_json_and_back(key: ConvKey) -> None:
    again = ConvKey.from_json(key.to_json())
    assert again == key
    assert again.digest == key.digest
    assert not key.difference(again)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": None}, "shape is missing"),
        ({"device": 1}, "device is missing"),
        ({"version": 2}, "written by another release"),
        ({"device": {}}, "device is missing"),
        ({"device": {"device": "CPU", "speed": 1}}, "unknown device fields"),
        ({"device": {"device": 1}}, "must be text"),
        ({"device": {"device": "CPU", "cores": "2"}}, "cores must be"),
        ({"device": {"device": "CPU", "flags": {"BEAM": 2}}}, "flags must be"),
        ({"device": {"device": "CPU", "flags": [["BEAM"]]}}, "flags must be"),
        ({"device": {"device": "CPU", "flags": [["LD_PRELOAD", "x"]]}}, "'LD_PRELOAD': not among the flags"),
        ({"device": {"device": "CPU", "flags": [["BEAM", "2;x"]]}}, "'BEAM': not among the flags"),
        ({"policy": {"max_error": 0}}, "positive number"),
        ({"policy": {"max_error": True}}, "positive number"),
        ({"policy": {"max_workspace_bytes": -1}}, "0 or more"),
        ({"policy": {"allow_tf32": 1}}, "true or false"),
        ({"policy": {"tf32": True}}, "unknown policy fields"),
        ({"policy": []}, "policy must be an object"),
    ],
)
def test_json_that_is_no_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KeyFormatError, match=said):
        ConvKey.from_json({**KEY.to_json(), **changes})


def test_json_of_another_type() -> None:
    data: Any
    for data in ([], "key", None, 7):
        with pytest.raises(KeyFormatError):
            ConvKey.from_json(data)
    with pytest.raises(ShapeError):
        ConvKey.from_json({**KEY.to_json(), "shape": {"batch": 0}})


def test_the_device_at_hand() -> None:
    here = describe_device("CPU")
    assert (here.device, here.renderer, here.tinygrad) == ("CPU", "ClangRenderer", "0.14.0")
    assert here.arch
    assert here.os
    assert here.identity() == describe_device("cpu", surroundings=False).identity()
    assert DeviceSpec.from_json(here.to_json()) == here


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\n\nprocessor\t: 1\nmodel\t: 2\n",
         "AMD EPYC family 25 model 17"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n\nprocessor\t: 1",
         "implementer 0x41 part 0xd0c variant 0x3"),
        ("processor\t: 0\nhart\t: 1\n", ""),
    ],
)  # fmt: skip
def test_the_processor(cpuinfo: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux tells it of an x86, of an ARM (Neoverse N1), which has no name there, and of one that says nothing."""
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor_in(cpuinfo) == expected


def test_flags_are_those_in_force_now() -> None:
    """BEAM is in the key: a user who runs BEAM=2 is promised better than BEAM=2."""
    plain = dict(describe_device("CPU", surroundings=False).flags)
    with Context(BEAM=2, NOOPT=1, DEBUG=0):
        beam = dict(describe_device("CPU", surroundings=False).flags)
    assert beam == plain | {"BEAM": "2", "NOOPT": "1"}
    assert dict(describe_device("CPU", surroundings=False).flags) == plain


def test_the_device_while_another_thread_compiles() -> None:
    """tinygrad forbids opening devices to the whole process for as long."""
    with Context(ALLOW_DEVICE_USAGE=0, MAX_KERNEL_BUFFERS=7):  # flags of which nothing is remembered
        assert dict(describe_device("CPU", surroundings=False).flags)["MAX_KERNEL_BUFFERS"] == "7"
