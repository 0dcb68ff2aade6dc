"""Listening: a socket that is ours before anything else is opened, and a server that ends its streams."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.protocol import PatientProtocol

GRACE_S = 5
BACKLOG = 128
M_ARENA_MAX = -8
"""glibc's number (malloc.h) for how many heaps the threads of a process have."""


class PortError(Exception):
    """The address cannot be listened on."""


def share_one_heap() -> None:
    """From here on all threads allocate from one heap, where the C library is glibc; MALLOC_ARENA_MAX prevails.

    By default each thread has its own, and in each of them what is remembered for long lies between what lives for one
    request: memory grew for a long time after all that is remembered had reached its limit (bench/load.py). Python's
    threads take turns, so that there is little to gain by several.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, 1)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises PortError with what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortError(
            f"expected a host of this machine, found {host!r} ({error.strerror}): use --host 127.0.0.1"
        ) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PortError(
            f"expected to listen on {host} port {port}, found: {error.strerror}; {_advice(error)}"
        ) from None
    return sock


def _advice(error: OSError) -> str:
    """What to do about a `bind` that failed."""
    if error.errno == errno.EADDRNOTAVAIL:
        return "give an address of this machine with --host (127.0.0.1: only this machine)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "ports below 1024 are the administrator's: take another with --port (0: any)"
    return "end the program that uses it or take another with --port (0: any)"


class Server(uvicorn.Server):
    """uvicorn that says when it listens, and at the first signal lets open streams end.

    What it logs goes the way of all our lines (api/logs.py); requests are logged by `Observer`, which knows their ids
    and leaves out what may be secret. Only a proxy on this machine is believed when it says who asks, and by https.
    """

    def __init__(self, app: FastAPI, on_ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, lifespan="on", http=PatientProtocol, ws="none",
            timeout_graceful_shutdown=GRACE_S, server_header=False, forwarded_allow_ips=["127.0.0.1", "::1"],
        )  # fmt: skip
        super().__init__(config)
        self._app, self._on_ready = app, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn, then `on_ready`."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn; streams look at `stopping`."""
        self._app.state.service.stopping.set()
        super().handle_exit(sig, frame)
