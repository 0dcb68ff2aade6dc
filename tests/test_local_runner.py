"""The local runner against real child processes that hang, crash, lie and babble."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.device_lock import DeviceBusyError, DeviceLock
from autotune.local_runner import LocalRunner
from autotune.measurement import Measurement, Status
from autotune.memory import memory_bytes
from autotune.runner import DeviceUnavailableError, Limits, Request, RunStoppedError
from strategies.candidate import Candidate
from strategies.key import ConvKey, DeviceSpec
from strategies.shape import ConvShape

SCRIPT = Path(__file__).with_name("scripted_child.py")
CHILD = (sys.executable, str(SCRIPT))
ROOT = SCRIPT.parent.parent


def key(**device: Any) -> ConvKey:
    shape = ConvShape.of((1, 4, 8, 8), (4, 4, 3, 3), padding=1)
    return ConvKey(shape=shape, device=DeviceSpec(**{"device": "CPU", **device}))


def do(deed: str, at: str = "prepare") -> Candidate:
    return Candidate.of("scripted", do=deed, at=at)


FINE = Candidate.of("direct")
ALSO_FINE = Candidate.of("scripted", do="nothing")


def request(*candidates: Candidate, **fields: Any) -> Request:
    limits = Limits(**{"prepare_s": 2.0, "run_s": 2.0, "memory_bytes": 300 << 20, **fields.pop("limits", {})})
    return Request(key=fields.pop("key", key()), candidates=candidates, rounds=3, limits=limits, **fields)


MakeRunner = Callable[..., LocalRunner]


@pytest.fixture
def make_runner(tmp_path: Path) -> Iterator[MakeRunner]:
    made: list[LocalRunner] = []

    def make(**options: Any) -> LocalRunner:
        environ = {**os.environ, **options.pop("environ", {})}
        runner = LocalRunner("CPU", environ=environ, child=CHILD, lock_directory=tmp_path, **options)
        made.append(runner)
        return runner

    yield make
    for runner in made:
        runner.close()


@pytest.fixture
def runner(make_runner: MakeRunner) -> LocalRunner:
    return make_runner()


def statuses(measured: list[Measurement]) -> list[str]:
    return [str(m.status) for m in measured]


def test_a_fine_candidate_is_measured_in_a_child_that_stays_warm(runner: LocalRunner) -> None:
    [first], [second] = runner.measure(request(FINE)), runner.measure(request(FINE))
    assert first.status is Status.OK
    assert first.times_s == (1e-3,) * 3
    assert first.conditions["pid"] == second.conditions["pid"] != os.getpid()
    assert second.conditions["requests"] == 2


def test_each_measurement_is_an_attempt_of_its_own_with_time_and_conditions(runner: LocalRunner) -> None:
    measured = [*runner.measure(request(FINE, ALSO_FINE)), *runner.measure(request(FINE))]
    assert len({m.attempt for m in measured}) == 3
    assert all(len(m.attempt) == 32 for m in measured)
    assert all(abs(m.measured_at - time.time()) < 60 for m in measured)
    assert all({"host", "load", "load_before", "cost_s"} <= m.conditions.keys() for m in measured)


@pytest.mark.parametrize(
    ("candidate", "status", "reason"),
    [
        (do("hang"), "timeout", "took more than 2 s to compile and verify"),
        (do("hang", at="verify"), "timeout", "took more than 2 s to compile and verify"),
        (do("hang", at="time"), "timeout", "took more than 2 s for one timing"),
        (do("segfault"), "crashed", "was killed by SIGSEGV: about to touch what is not mine"),
        (do("segfault", at="time"), "crashed", "was killed by SIGSEGV"),
        (do("hog"), "crashed", "used more than 300 MiB of memory"),
        (do("hog", at="time"), "crashed", "used more than 300 MiB of memory"),
        (do("garbage"), "crashed", "wrote something that is not an event"),
        (do("exit_3"), "crashed", "exited with status 3: giving up"),
        (do("huge_stderr"), "crashed", "the last words"),
        (do("bug"), "crashed", "ZeroDivisionError: a bug in measure"),
        (do("wrong"), "wrong", "above the bound"),
    ],
    ids=lambda value: str(value) if isinstance(value, Candidate) else "",
)
def test_a_broken_candidate_is_named_and_takes_no_other_with_it(
    runner: LocalRunner, candidate: Candidate, status: str, reason: str
) -> None:
    limits = {"prepare_s": 20.0, "run_s": 20.0} if status == "crashed" else {}
    measured = runner.measure(request(FINE, candidate, ALSO_FINE, limits=limits))
    assert statuses(measured) == ["ok", status, "ok"]
    assert reason in measured[1].reason
    assert len(measured[1].reason) < 1500
    assert [m.candidate for m in measured] == [FINE, candidate, ALSO_FINE]
    assert measured[0].conditions["pid"] == measured[2].conditions["pid"], "the fine ones share their rounds"
    assert statuses(runner.measure(request(FINE))) == ["ok"]


def test_many_broken_candidates_in_one_request(runner: LocalRunner) -> None:
    measured = runner.measure(
        request(do("segfault"), FINE, do("hang", at="time"), do("wrong"), ALSO_FINE, do("exit_3", at="time"))
    )
    assert statuses(measured) == ["crashed", "ok", "timeout", "wrong", "ok", "crashed"]


def test_a_candidate_that_runs_after_a_poisoner_is_not_blamed(runner: LocalRunner) -> None:
    """The crash shows in the second, the first has ruined the process: the second is tried in a fresh one."""
    measured = runner.measure(request(do("poison"), FINE))
    assert statuses(measured) == ["ok", "ok"]
    assert statuses(runner.measure(request(do("poison")))) == ["ok"]
    assert statuses(runner.measure(request(FINE))) == ["ok"], "nor one of a later request"


def test_a_hang_costs_its_time_limit_and_little_else(runner: LocalRunner) -> None:
    runner.measure(request(FINE))
    begun = time.monotonic()
    assert statuses(runner.measure(request(do("hang"), limits={"prepare_s": 5.0}))) == ["timeout"]
    assert time.monotonic() - begun < 9.0, "a second try would take 10 s"


def test_compilers_of_a_killed_candidate_are_killed_too(make_runner: MakeRunner, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    runner = make_runner(environ={"SCRIPT_NOTES": str(notes)})
    assert statuses(runner.measure(request(do("hang_with_compiler")))) == ["timeout"]
    assert_gone(int(pid) for pid in notes.read_text().split())


def test_only_the_flags_of_the_key_reach_the_child(make_runner: MakeRunner) -> None:
    runner = make_runner(environ={"BEAM": "9", "DEBUG": "4", "DEV": "CUDA", "PARALLEL": "8"})
    [plain] = runner.measure(request(FINE))
    [beam] = runner.measure(request(FINE, key=key(flags=(("BEAM", "2"),))))
    [again] = runner.measure(request(FINE, key=key(flags=(("BEAM", "2"),))))
    assert plain.conditions["environment"] == {"DEV": "CPU", "PARALLEL": "0"}
    assert beam.conditions["environment"] == {"DEV": "CPU", "PARALLEL": "0", "BEAM": "2"}
    assert plain.conditions["pid"] != beam.conditions["pid"] == again.conditions["pid"]


def test_a_key_of_another_device_is_refused(runner: LocalRunner) -> None:
    with pytest.raises(ValueError, match="measures on CPU: got a key of METAL"):
        runner.measure(request(FINE, key=key(device="METAL")))


@pytest.mark.parametrize(
    ("how", "reason"), [("absent", "RuntimeError: no such device, not here"), ("crash", "exited with status 5")]
)
def test_a_device_that_cannot_be_opened_raises_in_one_line(make_runner: MakeRunner, how: str, reason: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=reason) as caught:
        make_runner(environ={"SCRIPT_DEVICE": how}).measure(request(FINE))
    assert "\n" not in str(caught.value)


def test_a_program_that_is_not_there_raises(tmp_path: Path) -> None:
    with (
        LocalRunner("CPU", child=("/nonexistent/python",), lock_directory=tmp_path) as runner,
        pytest.raises(DeviceUnavailableError, match="no child process"),
    ):
        runner.measure(request(FINE))


def test_a_child_that_never_gets_ready_raises(tmp_path: Path) -> None:
    child = (sys.executable, "-c", "import time; time.sleep(60)")
    with (
        LocalRunner("CPU", child=child, lock_directory=tmp_path, start_timeout_s=0.3) as runner,
        pytest.raises(DeviceUnavailableError, match=r"not ready after 0\.3 s"),
    ):
        runner.measure(request(FINE))


def test_a_device_lost_amid_a_request_keeps_what_was_final(make_runner: MakeRunner, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    starts.write_text("1")
    runner = make_runner(environ={"SCRIPT_STARTS": str(starts)})
    with pytest.raises(DeviceUnavailableError, match="fallen off the bus") as caught:
        runner.measure(request(do("segfault"), FINE))
    assert [(m.candidate, m.status) for m in caught.value.measured] == [(do("segfault"), Status.CRASHED)]
    assert caught.value.measured[0].attempt


def test_the_child_ends_when_the_runner_closes(runner: LocalRunner) -> None:
    [measured] = runner.measure(request(FINE))
    runner.close()
    runner.close()
    assert_gone([measured.conditions["pid"]])


def test_the_child_outlives_the_thread_that_started_it(runner: LocalRunner) -> None:
    seen: list[list[Measurement]] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: seen.append(runner.measure(request(FINE))))
        thread.start()
        thread.join()
    seen.append(runner.measure(request(FINE)))
    assert len({measured[0].conditions["pid"] for measured in seen}) == 1


@pytest.mark.parametrize("deed", ["hang_with_compiler", "hang_with_lock", "nothing"])
def test_no_orphan_is_left_when_the_tuner_is_killed(tmp_path: Path, deed: str) -> None:
    notes = tmp_path / "notes"
    program = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(SCRIPT.parent)!r})
        import test_local_runner as t
        from pathlib import Path
        runner = t.LocalRunner("CPU", child=t.CHILD, lock_directory=Path({str(tmp_path)!r}))
        [fine] = runner.measure(t.request(t.FINE))
        with open({str(notes)!r}, "a") as file: file.write(f"{{fine.conditions['pid']}} ")
        if {deed!r} != "nothing":
            runner.measure(t.request(t.do({deed!r}), limits=dict(prepare_s=600.0)))
        import time; time.sleep(600)
    """)
    environ = {**os.environ, "SCRIPT_NOTES": str(notes), "PYTHONPATH": str(ROOT)}
    expected = {"nothing": 1, "hang_with_lock": 2, "hang_with_compiler": 3}[deed]
    with subprocess.Popen([sys.executable, "-c", program], env=environ) as tuner:
        try:
            wait_until(lambda: notes.exists() and len(notes.read_text().split()) >= expected)
        finally:
            tuner.kill()
    pids = {int(pid) for pid in notes.read_text().split()}
    assert_gone(pids)
    with DeviceLock("CPU", tmp_path).held(timeout_s=1, on_wait=lambda message: None):
        pass


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell has what it starts in the background ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of psutil's, if it comes as one is opened
def test_an_interrupt_ends_the_child_and_frees_the_device(
    interruptible: None, runner: LocalRunner, tmp_path: Path
) -> None:
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        runner.measure(request(do("hang"), limits={"prepare_s": 60.0}))
    with DeviceLock("CPU", tmp_path).held(timeout_s=0, on_wait=pytest.fail):
        pass
    assert statuses(runner.measure(request(FINE))) == ["ok"]


def test_a_measurement_that_is_told_to_stop_ends_at_once_and_frees_the_device(
    runner: LocalRunner, tmp_path: Path
) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(RunStoppedError):
        runner.measure(request(FINE, do("hang"), limits={"prepare_s": 60.0}), should_stop=stop.is_set)
    assert time.monotonic() - begun < 30.0
    with (
        DeviceLock("CPU", tmp_path).held(timeout_s=0, on_wait=pytest.fail),
        pytest.raises(RunStoppedError),  # nor does it wait for the device
    ):
        runner.measure(request(FINE), should_stop=stop.is_set)
    assert statuses(runner.measure(request(FINE))) == ["ok"]


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # so it is
def test_a_child_that_cannot_be_killed_is_left_behind(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose driver hangs in the kernel; the next candidate finds a new child."""
    monkeypatch.setattr("autotune.child_process._DEAD_S", 0.2)
    left: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("autotune.child_process.os.killpg", lambda pid, _: left.append(pid))
        [measured] = runner.measure(request(do("hang")))
    os.killpg(left[0], signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # if `subprocess` has looked after it already
        os.waitpid(left[0], 0)
    assert measured.status is Status.TIMEOUT
    assert statuses(runner.measure(request(FINE))) == ["ok"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_child_is_the_first_to_go_where_memory_runs_out(runner: LocalRunner) -> None:
    [measured] = runner.measure(request(FINE))
    assert Path(f"/proc/{measured.conditions['pid']}/oom_score_adj").read_text() == "1000\n"


def test_a_second_tuner_gets_its_turn(tmp_path: Path) -> None:
    """The first wants the device back as soon as it has let go of it, as a search does."""
    first, second, done = DeviceLock("CPU", tmp_path), DeviceLock("CPU", tmp_path), threading.Event()

    def search() -> None:
        while not done.is_set():
            with first.held(timeout_s=10, on_wait=lambda _: None):
                time.sleep(0.02)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        time.sleep(0.1)
        for _ in range(5):
            with second.held(timeout_s=20.0, on_wait=lambda _: None):
                pass
    finally:
        done.set()
        thread.join()


def test_the_lock_outlives_the_whole_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cleans /tmp takes the directory of a service that has had nothing to do for ten days."""
    directory = tmp_path / "cleaned"

    def make() -> Path:
        directory.mkdir(exist_ok=True)
        return directory

    monkeypatch.setattr("autotune.device_lock.runtime_directory", make)
    lock = DeviceLock("CPU")
    with lock.held(timeout_s=0, on_wait=pytest.fail):
        pass
    shutil.rmtree(directory)
    with lock.held(timeout_s=0, on_wait=pytest.fail):
        assert lock.path.exists()


def test_a_full_tmp_does_not_keep_from_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autotune.device_lock.os.pwrite", full)
    with DeviceLock("CPU", tmp_path).held(timeout_s=0, on_wait=pytest.fail):
        pass


def test_two_tuners_never_measure_at_once(make_runner: MakeRunner, tmp_path: Path) -> None:
    told: list[str] = []
    runner = make_runner(lock_timeout_s=0.2, on_wait=told.append)
    with (
        DeviceLock("CPU:0", tmp_path).held(timeout_s=0, on_wait=pytest.fail),
        pytest.raises(DeviceBusyError, match=f"process {os.getpid()} has been measuring"),
    ):
        runner.measure(request(FINE))
    assert told == [f"waiting for CPU: process {os.getpid()} is measuring on it"]
    assert statuses(runner.measure(request(FINE))) == ["ok"]


def test_the_lock_is_free_between_requests_of_a_warm_child(runner: LocalRunner, tmp_path: Path) -> None:
    runner.measure(request(FINE))
    with DeviceLock("CPU", tmp_path).held(timeout_s=0, on_wait=pytest.fail):
        pass


def test_the_lock_outlives_a_cleaned_directory(tmp_path: Path) -> None:
    first, second = DeviceLock("CPU", tmp_path), DeviceLock("CPU", tmp_path)
    first.fileno()
    first.path.unlink()
    with (
        second.held(timeout_s=0, on_wait=pytest.fail),
        pytest.raises(DeviceBusyError),
        first.held(timeout_s=0, on_wait=lambda message: None),
    ):
        pass


def gone(pid: int) -> bool:
    """Whether it has ended, be it that nobody has looked after it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_gone(pids: Any) -> None:
    for pid in pids:
        wait_until(lambda pid=pid: gone(pid))


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.02)


def test_a_container_has_what_it_is_given(tmp_path: Path) -> None:
    total = memory_bytes(tmp_path)
    assert total == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == total
    (tmp_path / "memory.max").write_text(f"{64 << 20}\n")
    assert memory_bytes(tmp_path) == 64 << 20


def test_memory_is_limited_by_the_machine_whatever_is_asked_for(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.local_runner.candidate_memory_bytes", lambda: 200 << 20)
    for asked in (None, 1 << 40):
        limits = {"prepare_s": 20.0, "memory_bytes": asked}
        [hog] = make_runner().measure(request(do("hog"), limits=limits))
        assert (hog.status, hog.reason) == (Status.CRASHED, "used more than 200 MiB of memory")
