"""Rendered Metal source as C++ for the stand-in: what macros cannot do."""

from __future__ import annotations

import re
from dataclasses import dataclass

# threadgroup __attribute__((aligned(16))) float buf0[1024];
_ARRAY = re.compile(r"^(\s*)threadgroup (?:__attribute__\(\(aligned\(\d+\)\)\) )?(\w+) (\w+)\[(\d+)\];", re.MULTILINE)
_KERNEL = re.compile(r"^kernel void (\w+)\((.*)\) \{$", re.MULTILINE)
_SIZES = {"bool": 1, "char": 1, "uchar": 1, "half": 2, "bfloat": 2, "short": 2, "ushort": 2, "long": 8, "ulong": 8}
"""Bytes of an element; of all others, 4."""


class SourceError(ValueError):
    """Not what tinygrad's MetalRenderer writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What the runtime has to know of a kernel besides its code. `arrays` are its threadgroup arrays, in bytes."""

    name: str
    parameters: tuple[str, ...]
    arrays: tuple[tuple[str, int], ...]
    positions: bool


def describe(source: str) -> Kernel:
    """The one kernel of `source`. Raises SourceError."""
    found = _KERNEL.findall(source)
    if len(found) != 1:
        raise SourceError(f"expected one kernel, found {len(found)}")
    name, signature = found[0]
    parameters = [text.strip() for text in signature.split(",")]
    own = [text for text in parameters if "[[" not in text]
    if any(not text.startswith(("device ", "constant ", "volatile device ")) for text in own):
        raise SourceError(f"parameters of an unknown kind: {signature}")
    return Kernel(
        name=name,
        parameters=tuple(text.split()[-1] for text in own),
        arrays=tuple((array, int(count) * _SIZES.get(kind, 4)) for _, kind, array, count in _ARRAY.findall(source)),
        positions=len(own) < len(parameters),
    )


def translate(source: str) -> str:
    """C++ of the same lines: threadgroup arrays come from the runtime, and an entry unpacks the arguments."""
    kernel = describe(source)
    arrays = iter(range(len(kernel.arrays)))

    def array(match: re.Match[str]) -> str:
        indent, kind, name, count = match.groups()
        size = f"{count}ul * sizeof({kind}), sizeof({kind})"
        return f"{indent}{kind} *{name} = ({kind} *)stand_in_threadgroup({next(arrays)}, {size});"

    signature = _KERNEL.findall(source)[0][1].split(",")
    passed = [_argument(text.strip(), index) for index, text in enumerate(signature)]
    entry = (
        '\nextern "C" __attribute__((no_sanitize("thread")))\n'
        "void stand_in_entry(void **values, uint3 group, uint3 thread) {\n"
        f"  {kernel.name}({', '.join(passed)});\n}}\n"
    )
    return _ARRAY.sub(array, source) + entry


def _argument(parameter: str, index: int) -> str:
    if "threadgroup_position_in_grid" in parameter:
        return "group"
    if "thread_position_in_threadgroup" in parameter:
        return "thread"
    kind = parameter.rsplit(" ", 1)[0].removeprefix("volatile ").removeprefix("device ").removeprefix("constant ")
    if kind.endswith("&"):
        return f"({kind[:-1]})*({kind[:-1]} *)values[{index}]"  # a copy on the thread's own stack
    return f"({kind})values[{index}]"
