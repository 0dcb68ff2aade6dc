"""What the device at hand is, as part of a key."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from tinygrad import Device
from tinygrad.device import ALL_DEVICES, Compiled
from tinygrad.helpers import MAX_KERNEL_BUFFERS, NUM_CPU_THREADS, Context, ContextVar, Target, getenv
from tinygrad.schedule import rangeify

from strategies.flags import KERNEL_FLAGS
from strategies.key import DeviceSpec

_DEFAULTS = {
    "DEFAULT_FLOAT": "float32", "DEFAULT_INT": "int32", "DISABLE_FAST_IDIV": "1", "EMULATED_DTYPES": "",
    "SPLIT_REDUCEOP": "1", "TC": "1", "TC_SELECT": "-1", "TRANSCENDENTAL": "1", "TUPLE_ORDER": "1",
}  # fmt: skip
"""Of tinygrad 0.14's context variables; of those not named here, 0."""


def describe_device(device: str | None = None, *, surroundings: bool = True) -> DeviceSpec:
    """The device as this process sees it now, with the code generation flags in force. Opens the device.

    Without `surroundings` driver, OS and compiler stay empty: asking for them starts programs, and digests do not
    hold them. Raises whatever tinygrad raises when the device cannot be opened.
    """
    return _describe(Device.canonicalize(device), flags_in_force(), surroundings)


def available_devices() -> tuple[str, ...]:
    """The compute devices that open on this machine, best first."""
    found = []
    for name in ALL_DEVICES:
        try:
            with Context(DEBUG=0):
                found.append(str(Device[name].device))
        except Exception:  # noqa: BLE001 S112 - a device's library raises anything it likes when it is not there
            continue
    return tuple(found)


Flags = tuple[tuple[str, str], ...]
"""Names and values, sorted."""


def flags_in_force() -> Flags:
    """The code generation flags that differ from their defaults, sorted: of this process, at this moment."""
    variables = ContextVar._cache  # noqa: SLF001 - the one place where tinygrad lists them
    values = {name: str(variables[name].value) for name in KERNEL_FLAGS if name in variables}
    changed = {name: value for name, value in values.items() if value != _DEFAULTS.get(name, "0")}
    outside = {name: os.environ[name] for name in KERNEL_FLAGS if name not in variables and os.environ.get(name)}
    return tuple(sorted((changed | outside).items()))


def flag_rules() -> dict[str, dict[str, Any]]:
    """How each flag's text becomes what is in force: whether it is a `number`, and its `default` (None: always said).

    With it `flags_in_force` of another process can be told from its environment alone.
    """
    variables = ContextVar._cache  # noqa: SLF001 - as above
    return {
        name: {
            "number": name in variables and isinstance(variables[name].value, int),
            "default": _DEFAULTS.get(name, "0") if name in variables else None,
        }
        for name in KERNEL_FLAGS
    }


def _describe(name: str, flags: tuple[tuple[str, str], ...], surroundings: bool) -> DeviceSpec:
    renderer = opened(name).renderer
    return _described(name, type(renderer).__name__, renderer.target, int(NUM_CPU_THREADS.value), flags, surroundings)


@functools.cache
def _described(
    name: str, renderer: str, target: Target, threads: int, flags: tuple[tuple[str, str], ...], surroundings: bool
) -> DeviceSpec:
    kind = name.split(":", maxsplit=1)[0]
    return DeviceSpec(
        device=kind,
        arch=_arch(kind, target.arch, name),
        renderer=renderer,
        cores=threads if kind == "CPU" else _cores(kind, name),
        tinygrad=version("tinygrad"),
        flags=flags,
        driver=_driver(kind, name) if surroundings else "",
        os=_system() if surroundings else "",
        compiler=_compiler(kind) if surroundings else "",
        simulated=_simulated(name, target),
    )


def opened(name: str) -> Compiled:
    """`Device[name]`, also while another thread compiles: tinygrad then forbids that to all threads."""
    get: Callable[[str], Compiled] = getattr(Device, "_Device__get_canonicalized_item", Device.__getitem__)
    return get(name)


def _arch(kind: str, arch: str, name: str) -> str:
    """The renderer's architecture with the product's name: one architecture comes at many speeds."""
    if kind == "CPU":
        return f"{arch} {_processor()}".strip()
    if kind == "METAL":
        return f"{arch} {_metal_name(name)}".strip()
    if kind == "CL":
        return f"{arch} {getattr(opened(name), 'device_name', '')}".strip()
    return f"{arch} {_cuda_name(_index(name))}".strip() if kind in ("CUDA", "NV") else arch


def _simulated(name: str, target: Target) -> str:
    """What pretends to be the device: one of tinygrad's mock interfaces, or a device that says so of itself."""
    if target.interface.startswith("MOCK"):
        return f"tinygrad's {target.interface}"
    return str(getattr(opened(name), "simulated", ""))


def _metal_name(name: str) -> str:
    """`Apple M3 Max`; in a virtual machine `Apple Paravirtual device`."""
    from tinygrad.runtime.ops_metal import from_ns_str

    return str(from_ns_str(cast("Any", opened(name)).sysdevice.name()))


@functools.cache
def _processor() -> str:
    try:
        return processor_in(Path("/proc/cpuinfo").read_text())
    except OSError:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()


def processor_in(cpuinfo: str) -> str:
    """The first processor that Linux's /proc/cpuinfo tells of, by what decides about its speed: an x86's family and
    model; an ARM's implementer and part, for which there is no name."""
    lines = cpuinfo.split("\n\n", maxsplit=1)[0].splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    said = [facts.get("model name", platform.processor())]
    for words in (
        {"family": "cpu family", "model": "model"},
        {"implementer": "CPU implementer", "part": "CPU part", "variant": "CPU variant"},
    ):
        if all(name in facts for name in words.values()):
            said += [f"{word} {facts[name]}" for word, name in words.items()]
    return " ".join(word for word in said if word)


def _cores(kind: str, name: str) -> int:
    """Multiprocessors of an NVIDIA GPU, cores of an Apple GPU; 0 where nobody tells."""
    if kind in ("CUDA", "NV"):
        return _cuda_multiprocessors(_index(name))
    if kind == "METAL":
        return gpu_cores(_output("ioreg", "-l", "-w0", "-r", "-c", "AGXAccelerator"))
    return 0


def gpu_cores(ioreg: str) -> int:
    """The number of cores of an Apple GPU in what ioreg says of its accelerator; 0 where it does not."""
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', ioreg)
    return int(found[1]) if found is not None else 0


def _index(name: str) -> int:
    return int(name.split(":")[1]) if ":" in name else 0


def _cuda_multiprocessors(index: int) -> int:
    multiprocessor_count = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    count = ctypes.c_int()
    driver, device = _cuda_device(index)
    if driver is None or driver.cuDeviceGetAttribute(ctypes.byref(count), multiprocessor_count, device) != 0:
        return 0
    return count.value


def _cuda_name(index: int) -> str:
    name = ctypes.create_string_buffer(128)
    driver, device = _cuda_device(index)
    return name.value.decode() if driver is not None and driver.cuDeviceGetName(name, len(name), device) == 0 else ""


def _cuda_device(index: int) -> tuple[ctypes.CDLL | None, ctypes.c_int]:
    """CUDA's driver, which tinygrad has initialised, and one of its devices."""
    device, library = ctypes.c_int(), ctypes.util.find_library("cuda")
    driver = ctypes.CDLL(library) if library is not None else None
    found = driver is not None and driver.cuDeviceGet(ctypes.byref(device), index) == 0
    return (driver if found else None), device


def _system() -> str:
    """The operating system and its build: on macOS, drivers and Metal's compiler come with it."""
    mac, kernel = platform.mac_ver()[0], f"{platform.system()} {platform.release()}"
    return f"macOS {mac} {_output('sw_vers', '-buildVersion')} {kernel}" if mac else kernel


def _driver(kind: str, name: str) -> str:
    if kind in ("CUDA", "NV"):
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    if kind == "CL":
        return str(getattr(opened(name), "driver_version", ""))
    return platform.mac_ver()[0] if kind == "METAL" else ""


def _compiler(kind: str) -> str:
    return _output(str(getenv("CC", "clang")), "--version").split("\n")[0] if kind == "CPU" else ""


def _output(*command: str) -> str:
    """What a command prints, or nothing if it is not there: a description that lacks a field is still one."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def has_shared_memory(device: str) -> bool:
    """Whether threads of the device form workgroups that share memory."""
    renderer = opened(device).renderer
    return bool(renderer.has_local and renderer.has_shared)


def most_buffers(device: str) -> int | None:
    """How many buffers a kernel may have, beyond which tinygrad divides it; None where it never does."""
    return MAX_KERNEL_BUFFERS.value or rangeify.DEVICE_MAX_BUFS.get(device.partition(":")[0])
