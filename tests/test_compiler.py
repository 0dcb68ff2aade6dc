"""A C compiler is found or made, what the caller chose is respected, and tinygrad's kernels run through it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autotune import compiler
from autotune.compiler import CCompiler, CCompilerError, ensure_c_compiler

ROOT = Path(__file__).parent.parent
needs_zig = pytest.mark.skipif(compiler._zig() is None, reason="the ziglang package is not installed (Linux only)")

KERNELS = """
import numpy as np
from tinygrad import Tensor, TinyJit, dtypes

rng = np.random.default_rng(0)

@TinyJit
def matmul(a, b):
    return (a @ b).realize()

for _ in range(4):
    a, b = (rng.standard_normal((33, 65)).astype("float32"), rng.standard_normal((65, 17)).astype("float32"))
    np.testing.assert_allclose(matmul(Tensor(a), Tensor(b)).numpy(), a @ b, rtol=1e-4, atol=1e-4)

x, w = rng.standard_normal((1, 4, 9, 9)), rng.standard_normal((6, 4, 3, 3))
padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
expected = np.einsum("nchwij,ocij->nohw", windows, w)
for dtype, bound in ((dtypes.float32, 1e-5), (dtypes.float16, 4e-3), (dtypes.bfloat16, 3e-2)):
    got = Tensor(x).cast(dtype).conv2d(Tensor(w).cast(dtype), padding=1).float().numpy()
    assert abs(got - expected).max() <= bound * abs(expected).max(), dtype
    for name in ("exp", "sin"):
        got = getattr(Tensor(x).cast(dtype), name)().float().numpy()
        assert abs(got - getattr(np, name)(x)).max() <= bound * np.exp(x).max(), (name, dtype)
print("ran")
"""


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without clang: nothing on PATH, an empty home, /tmp elsewhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()
    return {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home")}


def test_a_set_cc_is_left_alone(bare: dict[str, str]) -> None:
    program(Path(bare["PATH"], "clang"), "echo clang version 1")
    mine = program(Path(bare["PATH"], "mycc"), "echo my compiler 7; echo more")
    bare["CC"] = str(mine)
    assert ensure_c_compiler(bare) == CCompiler(command=str(mine), version="my compiler 7", source="CC")
    assert bare["CC"] == str(mine)


@pytest.mark.parametrize("command", ["no-such-compiler", "clang -O1", "/"])
def test_a_cc_that_is_no_program_is_refused(bare: dict[str, str], command: str) -> None:
    program(Path(bare["PATH"], "clang"), "echo clang version 1")
    bare["CC"] = command
    with pytest.raises(CCompilerError, match=r"CC=.*one program, without arguments"):
        ensure_c_compiler(bare)
    assert bare["CC"] == command


GCC = """case "$*" in
*--version*) echo gcc 12 ;;
*--target=*) echo "gcc: unrecognized option --target" >&2; exit 1 ;;
esac"""


def test_a_cc_that_is_no_clang_is_refused(bare: dict[str, str]) -> None:
    bare["CC"] = str(program(Path(bare["PATH"], "gcc"), GCC))
    with pytest.raises(
        CCompilerError, match=r"gcc 12.*unrecognized option --target.*name a clang, or unset CC"
    ) as error:
        ensure_c_compiler(bare)
    assert "\n" not in str(error.value)


@needs_zig
def test_a_clang_that_is_no_clang_is_passed_over(bare: dict[str, str]) -> None:
    program(Path(bare["PATH"], "clang"), GCC)
    assert ensure_c_compiler(bare).source == "zig"


@needs_zig
def test_the_probe_is_what_tinygrad_asks_of_its_compiler(
    bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zig = ensure_c_compiler(bare).command
    log = tmp_path / "log"
    spy = program(tmp_path / "spy", f'echo "$*" >> {log}\nexec {zig} "$@"')
    bare["CC"] = str(spy)
    ensure_c_compiler(bare)
    code = "from tinygrad import Tensor; (Tensor.rand(7) + 1).realize()"
    environ = {**bare, "DEV": "CPU", "CACHELEVEL": "0", "PARALLEL": "0"}
    subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, check=True)
    version, *asked = log.read_text().splitlines()
    assert (version, len(set(asked)), len(asked) > 1) == ("--version", 1, True)


@pytest.mark.parametrize("cc", [None, ""])
def test_clang_on_the_path_needs_no_cc(bare: dict[str, str], cc: str | None) -> None:
    program(Path(bare["PATH"], "clang"), "echo clang version 1")
    if cc is not None:
        bare["CC"] = cc
    assert ensure_c_compiler(bare) == CCompiler(command="clang", version="clang version 1", source="clang")
    assert "CC" not in bare


def test_no_compiler_at_all_says_what_to_install(bare: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_zig", lambda: None)
    with pytest.raises(CCompilerError, match=r"install clang .* pip install ziglang"):
        ensure_c_compiler(bare)
    assert "CC" not in bare


@needs_zig
def test_a_clang_that_does_not_run_is_passed_over(bare: dict[str, str]) -> None:
    program(Path(bare["PATH"], "clang"), "exit 1")
    assert ensure_c_compiler(bare).source == "zig"


@needs_zig
def test_the_wrapper_is_private_and_stays(bare: dict[str, str]) -> None:
    first = ensure_c_compiler(bare)
    wrapper = Path(bare["CC"])
    assert (first.command, first.source) == (str(wrapper), "zig")
    assert first.version.startswith("clang version")
    assert wrapper.is_relative_to(bare["HOME"])
    assert stat.S_IMODE(wrapper.stat().st_mode) == stat.S_IMODE(wrapper.parent.stat().st_mode) == 0o700
    written = wrapper.stat().st_mtime_ns
    assert ensure_c_compiler(bare) == first, "a child process inherits CC and finds the same"
    assert wrapper.stat().st_mtime_ns == written
    wrapper.unlink()
    assert ensure_c_compiler(bare) == first, "a cache that was emptied is filled again"
    assert list(wrapper.parent.iterdir()) == [wrapper]


@needs_zig
def test_the_wrapper_of_another_environment_is_replaced(bare: dict[str, str]) -> None:
    stale = program(Path(bare["HOME"], f"{compiler._WRAPPER}0123456789abcdef"), "exec /gone/zig clang")
    bare["CC"] = str(stale)
    assert ensure_c_compiler(bare).source == "zig"
    assert bare["CC"] != str(stale)


@needs_zig
def test_an_odd_path_is_quoted(bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zig = program(tmp_path / "it's $HOME here" / "zig", 'echo "$1 $2"')
    monkeypatch.setattr(compiler, "_zig", lambda: zig)
    assert ensure_c_compiler(bare).version == "clang --version"


@needs_zig
@pytest.mark.parametrize("home", ["missing", "file", "link"])
def test_without_a_usable_home_it_goes_to_tmp(bare: dict[str, str], tmp_path: Path, home: str) -> None:
    cache = Path(bare["HOME"], ".cache")
    if home == "missing":
        del bare["HOME"]
    elif home == "file":
        cache.write_text("")
    else:
        (cache / "tinygrad-autotune").mkdir(parents=True)
        (cache / "tinygrad-autotune" / "cc").symlink_to(tmp_path)
    assert Path(ensure_c_compiler(bare).command).parent == tmp_path / f"tinygrad-autotune-{os.getuid()}"


@needs_zig
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_not_trusted(bare: dict[str, str], tmp_path: Path) -> None:
    del bare["HOME"]
    planted = tmp_path / f"tinygrad-autotune-{os.getuid()}"
    planted.mkdir(mode=0o700)
    os.chown(planted, 12345, 12345)
    with pytest.raises(CCompilerError, match=r"not a directory of this user's.*XDG_CACHE_HOME"):
        ensure_c_compiler(bare)
    assert not list(planted.iterdir())


@needs_zig
def test_many_at_once_agree(bare: dict[str, str]) -> None:
    environments = [dict(bare) for _ in range(8)]
    with ThreadPoolExecutor(len(environments)) as pool:
        found = set(pool.map(ensure_c_compiler, environments))
    assert len(found) == 1


@needs_zig
def test_tinygrads_kernels_run_through_the_wrapper(bare: dict[str, str]) -> None:
    ensure_c_compiler(bare)
    # CACHELEVEL=0: tinygrad's cache of compiled kernels does not tell compilers apart. PARALLEL=0: one process.
    environ = {**bare, "DEV": "CPU", "CACHELEVEL": "0", "PARALLEL": "0"}
    done = subprocess.run([sys.executable, "-c", KERNELS], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran\n"
