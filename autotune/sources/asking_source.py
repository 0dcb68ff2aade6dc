"""A service that is asked to tune what it does not know yet."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.client import Client, ServiceError, ServiceUnreachableError
from autotune.device_use import mark_in_use
from autotune.sources.source import Source, SourceError, usable
from autotune.winner import Winner
from strategies.key import ConvKey, Policy
from strategies.locks import ForkLock

ASKED_AT_ONCE = 1000
GATHER_S = 1.0
"""How long misses are gathered: a model's convolutions are scheduled one graph after the other, and make one job."""
RETRY_S = 60.0
CLOSE_S = 5.0
"""How long what is still to be sent may take at the end of a program: seldom more than an instant."""

ASKED = threading.Event()
"""Whether a service took something that this process asked it to tune."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A key without a winner; not `answered` if the lookup failed, so that there may be one."""

    key: ConvKey
    answered: bool


class AskingSource:
    """Looks up in `source`; what it does not know the service is asked to tune, once each, from a thread in the
    background. A lookup that fails does not keep it from that: with more time than a program has, what the service
    knows is found out first.

    The job waits until this process has ended, or for a worker elsewhere: it never competes with this program for
    the device, which is marked as in use for that. What it finds is applied by programs that come later, and by this
    one if another worker finds it meanwhile.
    """

    def __init__(self, source: Source, client: Client, warn: Callable[[str, str], None], policy: Policy) -> None:
        self._source, self._client, self._warn, self._policy = source, client, warn, policy
        self._lock = ForkLock()
        self._asked: set[str] = set()
        self._misses: queue.SimpleQueue[Miss | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def lookup(self, keys: Sequence[ConvKey]) -> dict[str, Winner]:
        try:
            found = self._source.lookup(keys)
        except SourceError:
            self._missed(keys, answered=False)
            raise
        self._missed([key for key in keys if key.digest not in found], answered=True)
        return found

    def version(self) -> object:
        return self._source.version()

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._misses.put(None)
            thread.join(CLOSE_S)
        self._source.close()

    def unasked(self, keys: Sequence[ConvKey]) -> None:
        """Of these nobody asks, since a lookup has failed a moment ago."""
        self._missed(keys, answered=False)

    def _missed(self, keys: Sequence[ConvKey], *, answered: bool) -> None:
        with self._lock:
            for key in keys:  # also of policies that allow less, whose winners hold too: these are not asked for
                if key.policy == self._policy and key.digest not in self._asked:
                    self._asked.add(key.digest)
                    self._misses.put(Miss(key, answered))
            if not (self._thread and self._thread.is_alive()) and not self._misses.empty():  # a forked child has none
                self._closing.clear()
                self._thread = threading.Thread(target=self._ask, name="autotune-misses", daemon=True)
                self._thread.start()

    def _ask(self) -> None:
        """Until the None that `close` puts behind the last miss: what came while others were sent is sent too."""
        ended = False
        while not ended:
            taken = [self._misses.get()]
            self._closing.wait(GATHER_S)
            while not self._misses.empty() and len(taken) < ASKED_AT_ONCE:
                taken.append(self._misses.get())
            ended = None in taken
            if misses := [miss for miss in taken if miss is not None]:
                self._send(misses)

    def _send(self, misses: Sequence[Miss]) -> None:
        try:
            unanswered = [miss.key for miss in misses if not miss.answered]
            known = usable(self._client.lookup_keys(unanswered)) if unanswered else {}
            keys = [miss.key for miss in misses if miss.key.digest not in known]
            if not keys:
                return
            for device in {key.device.device for key in keys}:
                mark_in_use(device)  # before the service hears of it
            self._client.tune({"keys": [key.to_json() for key in keys], "idle": True})
            ASKED.set()
        except (ServiceError, ServiceUnreachableError, OSError) as error:
            self._warn("misses", f"the service could not be asked to tune: {error}")
            if not self._closing.wait(RETRY_S):
                with self._lock:  # asked again when they are next looked up
                    self._asked.difference_update(miss.key.digest for miss in misses)
