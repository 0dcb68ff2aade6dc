"""Compiling many kernels: each once, several at a time, none for ever.

Lowering a kernel in Python is most of a candidate's cost (bench/trials.py prints the shares). tinygrad keeps what it
compiled by the kernel's graph, so candidates that share a kernel, such as a transform, share its compilation.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType

from tinygrad import Context, Device
from tinygrad.codegen import to_program, to_program_cache, to_program_context, to_program_key
from tinygrad.renderer import Renderer
from tinygrad.uop.ops import Ops, UOp

from strategies.graph.limits import checking

PARENT_S = 2.0
MOMENT_S = 0.001  # until it is tried again to interrupt what must not be interrupted
AGAIN_S = 1.0  # until it is raised again, should it have been lost all the same
UNTOUCHABLE = frozenset({__name__, "contextlib", "weakref", "_weakrefset"})
"""Modules whose functions are not interrupted: callbacks of weak references lose an exception, contexts are to be left
in order."""


class LoweringTimeoutError(BaseException):
    """tinygrad took more than `limit_s` over one kernel. No Exception: tinygrad handles those of options itself."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"lowering one kernel took tinygrad more than {self.limit_s:.3g} s of processor time"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise LoweringTimeoutError within the block once this process has spent `seconds` of processor time in it.

    Processor time, so that a busy machine fails nobody. Without effect outside the main thread, where Python
    delivers signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, frame: FrameType | None) -> None:
        if left:
            return
        if _interruptible(frame):
            raise LoweringTimeoutError(seconds)
        signal.setitimer(signal.ITIMER_PROF, MOMENT_S, AGAIN_S)

    left = False
    former = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN_S)
    try:
        yield
    finally:
        left = True  # a signal may be on its way still: it must not set the timer again
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


def _interruptible(frame: FrameType | None) -> bool:
    """Whether an exception raised in this frame reaches its callers: one that finalises an object prints it at best."""
    if frame is None or frame.f_globals.get("__name__") in UNTOUCHABLE:
        return False
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is None


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection within the block: lowering makes millions of small objects, few of them garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def kernels_of(linear: UOp) -> list[UOp]:
    """The graphs of the kernels that are still to be compiled, each once."""
    return list(dict.fromkeys(call.src[0] for call in linear.src if call.src[0].op is Ops.SINK))


_seconds: dict[tuple[object, ...], float] = {}
"""What compiling each kernel took, in whichever process."""
_refused: dict[tuple[object, ...], float] = {}
"""The limit that each kernel has exceeded: it need not be tried again within the same."""


def compile_kernels(linear: UOp, device: str, limit_s: float) -> float:
    """Compile what tinygrad has not yet; the seconds that these kernels took, now or before.

    Raises LoweringTimeoutError, or whatever tinygrad and its compiler raise.
    """
    renderer, total_s = Device[device].renderer, 0.0
    for ast in kernels_of(linear):
        key = to_program_key(ast, renderer)
        if limit_s <= _refused.get(key, 0.0):
            raise LoweringTimeoutError(limit_s)
        if key not in to_program_cache:
            try:
                to_program_cache[key], _seconds[key] = _compiled(ast, renderer, limit_s)
            except LoweringTimeoutError:
                _refused[key] = limit_s
                raise
        total_s += _seconds.get(key, 0.0)
    return total_s


class Pool:
    """Processes that compile kernels side by side, so that nothing of it runs beside a timing: `compile` returns when
    all is done. Started when first needed. For one thread."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def compile(self, linears: Sequence[UOp], device: str, *, limit_s: float, timeout_s: float) -> None:
        """Fill tinygrad's cache with the kernels of these schedules, as far as they compile within both limits.

        What is missing afterwards failed, took too long or met a broken process: who compiles it alone learns which.
        """
        renderer = Device[device].renderer
        todo = {to_program_key(ast, renderer): ast for linear in linears for ast in kernels_of(linear)}
        todo = {
            key: ast for key, ast in todo.items()
            if key not in to_program_cache and limit_s > _refused.get(key, 0.0)
        }  # fmt: skip
        if len(todo) < 2 or self._workers < 2:
            return
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._workers, context, _end_with_parent, (os.getpid(),))
        settings = {variable.key: variable.value for variable in to_program_context}
        jobs: dict[Future[tuple[UOp, float]], tuple[object, ...]] = {}
        try:
            for key, ast in todo.items():
                jobs[self._executor.submit(_compiled_apart, ast, renderer, device, settings, limit_s)] = key
        except BrokenProcessPool:  # what was submitted says so too
            pass
        done, late = wait(jobs, timeout=timeout_s)
        for job in done:
            key, error = jobs[job], job.exception()
            if error is None:
                to_program_cache[key], _seconds[key] = job.result()
            elif isinstance(error, LoweringTimeoutError):
                _refused[key] = limit_s
        if late or len(jobs) < len(todo) or any(isinstance(job.exception(), BrokenProcessPool) for job in done):
            self.close()

    def close(self) -> None:
        """End the processes, at once. Idempotent."""
        if self._executor is not None:
            for process in list((self._executor._processes or {}).values()):  # noqa: SLF001 - 3.14 has kill_workers()
                process.kill()
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


def _end_with_parent(parent: int) -> None:
    """In a process of the pool: end when the parent is gone, killed or not. It would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _compiled(ast: UOp, renderer: Renderer, limit_s: float) -> tuple[UOp, float]:
    """The program of a kernel and the seconds that it took."""
    begun = time.perf_counter()
    with within(limit_s), uncollected():
        return to_program(ast, renderer), time.perf_counter() - begun


def _compiled_apart(
    ast: UOp, renderer: Renderer, device: str, settings: Mapping[str, object], limit_s: float
) -> tuple[UOp, float]:
    """The same in a process of the pool, under the caller's settings and the device's limits."""
    with Context(**settings), checking(renderer, device):
        return _compiled(ast, renderer, limit_s)
