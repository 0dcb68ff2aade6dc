"""A process that measures: JSON lines over pipes of its own, what it prints kept as a bounded tail, killable whole."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence

import psutil

from strategies.shape import JsonObject

TAIL_BYTES = 16 << 10
MAX_LINE_BYTES = 4 << 20
_END_S = 2.0  # how long a child that closed its pipe, or was asked to end, may take to be gone
_DEAD_S = 10.0  # and one that was killed: a driver that hangs can keep it in the kernel for ever


class ChildBrokenError(RuntimeError):
    """The child ended, or wrote something that is not an event; the message says which."""


class ChildProcess:
    """One child in a session and process group of its own.

    `command` gets `--requests FD --events FD --life FD` appended: it reads requests from the first and writes events
    to the second, one JSON object a line (stdout is no place for either: tinygrad prints there). The end of the
    requests tells it to end, and that of `life`, which carries nothing, whoever watches over it. `inherit` names
    further descriptors to pass on. For one thread at a time.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], inherit: Sequence[int] = ()) -> None:
        requests_read, self._requests = os.pipe()
        self._events, events_write = os.pipe()
        life_read, self._life = os.pipe()
        self._incoming, self._outgoing, self._tail = bytearray(), bytearray(), bytearray()
        self._closed = False
        try:
            self._process = subprocess.Popen(
                [*command, "--requests", str(requests_read), "--events", str(events_write), "--life", str(life_read)],
                env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=(requests_read, events_write, life_read, *inherit),
            )  # fmt: skip
        except (OSError, ValueError):  # ValueError: an environment that cannot be one
            for descriptor in (self._requests, self._events, self._life):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (requests_read, events_write, life_read):
                os.close(descriptor)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        for descriptor in (self._requests, self._events, self._output):
            os.set_blocking(descriptor, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._events, selectors.EVENT_READ)
        self._selector.register(self._output, selectors.EVENT_READ)
        self._root = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._closed and self._process.poll() is None

    def send(self, request: JsonObject) -> None:
        """Queue a request; `receive` moves it, so that a child which does not read cannot block the caller."""
        self._outgoing += json.dumps(request).encode() + b"\n"
        self._selector.register(self._requests, selectors.EVENT_WRITE)

    def receive(self, timeout_s: float) -> JsonObject | None:
        """The next event, or None if there was none for `timeout_s`. Raises ChildBrokenError."""
        event = self._parsed()
        if event is not None:
            return event
        ended = self._process.poll() is not None  # asked first: what it wrote before is then in the pipe
        for key, _ in self._selector.select(0 if ended else timeout_s):
            if key.fd == self._output:
                self._keep_output()
            elif key.fd == self._requests:
                self._push()
            elif not self._pull():
                ended = True
        event = self._parsed()
        if event is None and ended:
            raise ChildBrokenError(self._ending())
        return event

    def memory_bytes(self, *, whole_tree: bool) -> int:
        """Resident memory of the child and, if `whole_tree`, of every process below it (compilers).

        Walking the process table costs about 1 ms per 70 processes of the machine, one process 12 us: while the
        child is timing, and starts nothing, ask for the child alone.
        """
        total = 0
        with contextlib.suppress(psutil.Error):
            for process in [self._root, *(self._root.children(recursive=True) if whole_tree else ())]:
                with contextlib.suppress(psutil.Error):  # compilers come and go
                    total += process.memory_info().rss
        return total

    def tail(self, lines: int = 6, characters: int = 1000) -> str:
        """The last lines that the child printed, stdout and stderr together."""
        self._keep_output()
        text = self._tail.decode(errors="replace").strip()
        return "\n".join(text.splitlines()[-lines:])[-characters:]

    def close(self) -> None:
        """Ask the child to end, then see to it. Idempotent."""
        if not self._closed:
            self._close_requests()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to its whole process group, compilers included. Idempotent."""
        if self._closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_DEAD_S)
        self._keep_output()
        self._closed = True
        self._selector.close()
        self._close_requests()
        os.close(self._events)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _parsed(self) -> JsonObject | None:
        line, newline, rest = self._incoming.partition(b"\n")
        if not newline:
            if len(line) > MAX_LINE_BYTES:
                raise ChildBrokenError(f"wrote a line of more than {MAX_LINE_BYTES >> 20} MiB instead of an event")
            return None
        self._incoming = rest
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise ChildBrokenError(f"wrote something that is not an event: {bytes(line[:80])!r}")
        return event

    def _pull(self) -> bool:
        """Read what there is of events; False at their end."""
        try:
            data = os.read(self._events, 1 << 16)
        except BlockingIOError:
            return True
        self._incoming += data
        return bool(data)

    def _push(self) -> None:
        try:
            del self._outgoing[: os.write(self._requests, self._outgoing)]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it ended: the events' end says how
            self._outgoing.clear()
        if not self._outgoing:
            self._selector.unregister(self._requests)

    def _keep_output(self) -> None:
        while not self._closed:
            try:
                data = os.read(self._output, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(self._output)
                return
            self._tail += data
            del self._tail[:-TAIL_BYTES]

    def _ending(self) -> str:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "closed its pipe and went on"
        if code >= 0:
            return f"exited with status {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def _close_requests(self) -> None:
        if self._requests >= 0:
            os.close(self._requests)
            os.close(self._life)
            self._requests = -1
