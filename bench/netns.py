"""Workers that can only dial out, a silent cut in mid-measurement, and a worker that comes back too late.

    sudo .venv/bin/python bench/netns.py                a cut of 60 s
    sudo .venv/bin/python bench/netns.py --cut 25

PostgreSQL and a service run in one network namespace, each of two workers in one of its own, with a lock directory of
its own as if on a machine of its own; they log in over TLS, with the rights of db/worker_role.sql. Packets between them
go through this process, which drops every connection attempt towards a worker, and during a cut everything: nobody is
told, as when a cable is pulled. The last line is the verdict; exit status 1 if anything does not hold. Linux and root
only; needs ip, setpriv and openssl. PG_BIN and PG_USER name PostgreSQL's programs and user (bench/cluster.py).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cluster import Postgres, Process, StuckError, autotune, work_folder
from sqlalchemy import Engine, create_engine, text

from api.devices import ProbedDevices
from autotune.job import Budget
from db import SqlStore, open_store
from strategies.key import ConvKey
from strategies.shape import ConvShape

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
TCP, SYN, ACK = 6, 0x02, 0x10
MTU = 1500
PASSWORD = secrets.token_urlsafe()
WAIT_S = 300.0
SHAPES = ((4, 8), (6, 8), (8, 8), (10, 8))
PORTS = (22, 5432, 8000, 40000)
"""Tried on the workers from outside."""


class Wire:
    """A pair of interfaces, one in each namespace, and every packet between them."""

    def __init__(self, number: int, inside: str, outside: str) -> None:
        self.inside_ip, self.outside_ip = f"10.213.{number}.2", f"10.213.{number}.1"
        self.is_cut, self.refused, self.lost = False, 0, 0
        names = (f"at{os.getpid() % 10000}i{number}", f"at{os.getpid() % 10000}o{number}")
        self._inside, self._outside = (_tun(name) for name in names)
        for name, namespace, address in zip(names, (inside, outside), (self.inside_ip, self.outside_ip), strict=True):
            _ip("link", "set", name, "netns", namespace)
            _ip("-n", namespace, "addr", "add", f"{address}/30", "dev", name)
            _ip("-n", namespace, "link", "set", name, "up")
        threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self) -> None:
        with contextlib.suppress(OSError):  # the namespaces are gone: the end
            self._carry_on()

    def _carry_on(self) -> None:
        while True:
            for end in select.select([self._inside, self._outside], [], [])[0]:
                packet = os.read(end, MTU + 64)
                inward = end == self._outside
                if self.is_cut:
                    self.lost += 1
                elif inward and _opens_connection(packet):
                    self.refused += 1
                else:
                    os.write(self._inside if inward else self._outside, packet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what happened and what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", type=float, default=60.0, metavar="SECONDS", help="how long (60)")
    parser.add_argument("--keep", metavar="FOLDER", help="a new folder for database and logs (default: thrown away)")
    options = parser.parse_args(arguments)
    if sys.platform != "linux" or os.geteuid() != 0:
        raise SystemExit("expected root on Linux, which may make network namespaces: use sudo")
    begun = time.monotonic()
    with _namespaces(3) as (hub, *homes), work_folder(options.keep, "netns-") as folder:
        scene = Scene(folder, hub, homes)
        try:
            faults = scene.play(options.cut)
        except StuckError as error:
            faults = [str(error)]
            for process in scene.processes:
                print("\n".join([f"-- the end of {process.name}'s log", *process.tail()]))
        finally:
            for process in reversed(scene.processes):
                process.end(10.0)
    for fault in faults:
        print(f"DOES NOT HOLD: {fault}")
    verdict = "everything holds" if not faults else f"{len(faults)} faults"
    print(f"verdict after {time.monotonic() - begun:.0f} s (a cut of {options.cut:g} s): {verdict}")
    return 1 if faults else 0


class Scene:
    """The processes, each in its namespace."""

    def __init__(self, folder: Path, hub: str, homes: Sequence[str]) -> None:
        self.wires = [Wire(number, home, hub) for number, home in enumerate(homes, 1)]
        addresses = [wire.outside_ip for wire in self.wires]
        self.postgres = Postgres(folder, listen=addresses, inside=("ip", "netns", "exec", hub))
        environ = {"DEV": "CPU", "PGPASSWORD": PASSWORD}
        trust = f"sslmode=verify-full&sslrootcert={self.postgres.certificate}"
        serve = ["ip", "netns", "exec", hub, *autotune("serve", "--port", "8000", "--db", self.postgres.url)]
        self.service = Process("service", serve, folder / "service.log", environ=environ)
        self.workers = []
        for number, (home, wire) in enumerate(zip(homes, self.wires, strict=True), 1):
            address = f"postgresql+psycopg://autotune_worker@{wire.outside_ip}/autotune?{trust}"
            command = ["ip", "netns", "exec", home, *autotune("worker", "--device", "CPU", "--db", address)]
            own = {**environ, "AUTOTUNE_LOCKS": str(folder / f"locks-{number}")}  # as on another machine
            self.workers.append(Process(f"worker {number}", command, folder / f"worker-{number}.log", environ=own))
        self.hub = hub
        self.processes = [self.postgres, self.service, *self.workers]

    def play(self, cut_s: float) -> list[str]:
        """The whole piece; what does not hold, one line each."""
        self.postgres.create()
        with open_store(self.postgres.url) as store:
            store.prepare_queue()
            self.postgres.worker_role(PASSWORD)
            engine = create_engine(self.postgres.url)
            self._wait("two workers", lambda: sum(worker.alive for worker in store.workers()) == 2)
            faults = self._knock()
            job = self._submit(store, SHAPES)
            first, name = self.workers[0], self._name(store, self.workers[0])
            self._wait("a measurement on worker 1", lambda: self._task_of(engine, name) is not None)
            task = self._task_of(engine, name)
            assert task is not None
            self.wires[0].is_cut = True
            print(f"worker 1 is cut off at attempt 1 of task {task}", flush=True)
            begun = time.monotonic()
            self._wait("its work to be given to worker 2", lambda: self._state(engine, task) == ("done", 2))
            print(f"{time.monotonic() - begun:.0f} s later worker 2 has measured it", flush=True)
            self._wait("the end of the cut", lambda: time.monotonic() - begun > cut_s)
            lost, self.wires[0].is_cut = self.wires[0].lost, False
            print(f"the cut is over after {cut_s:g} s, {lost} packets were dropped silently", flush=True)
            self._wait("the late answer", lambda: self._late(engine, task) is not None)
            late = self._late(engine, task) or ""
            print(f"worker 1 has answered too late: {late.count('attempt')} measurements, kept as evidence", flush=True)
            self._wait("the job to end", lambda: store.job(job).state.ended)
            self._wait("worker 1 to be back", lambda: self._alive(store, first))
            faults += self._back(store, engine)
            faults += _faults(store, engine, job, late)
            engine.dispose()
        return faults

    def _knock(self) -> list[str]:
        """Nobody reaches a worker from outside, and none listens."""
        for wire in self.wires:
            for port in PORTS:
                knock = f"import socket; socket.create_connection(('{wire.inside_ip}', {port}), 0.3)"
                if _inside(self.hub, sys.executable, "-c", knock).returncode == 0:
                    return [f"worker at {wire.inside_ip} could be dialled at port {port}"]
        refused = sum(wire.refused for wire in self.wires)
        print(f"workers can dial out only: {refused} packets that would have opened a connection inward were dropped")
        return [] if refused else ["no connection attempt was seen: nothing was proven"]

    def _back(self, store: SqlStore, engine: Engine) -> list[str]:
        """The worker that was away measures again."""
        name = self._name(store, self.workers[0])
        job = self._submit(store, [(cin + 1, size) for cin, size in SHAPES])
        self._wait("another job to end", lambda: store.job(job).state.ended)
        count = text("SELECT count(*) FROM attempts WHERE worker = :name AND counted")
        with engine.connect() as connection:
            measured = connection.execute(count, {"name": name}).scalar_one()
        print(f"worker 1 is back and has measured {measured} more tasks", flush=True)
        return [] if measured else ["the worker that came back measured nothing more"]

    def _submit(self, store: SqlStore, shapes: Sequence[tuple[int, int]]) -> str:
        device = next(worker.device for worker in store.workers() if worker.alive)
        keys = [
            ConvKey(shape=ConvShape.of((1, cin, size, size), (4, cin, 3, 3), padding=1), device=device)
            for cin, size in shapes
        ]
        return store.submit(keys, Budget(trials=2)).id

    def _name(self, store: SqlStore, process: Process) -> str:
        return next((w.name for w in store.workers() if w.about["pid"] == process.pid), "")

    def _alive(self, store: SqlStore, process: Process) -> bool:
        return any(worker.alive and worker.about["pid"] == process.pid for worker in store.workers())

    def _task_of(self, engine: Engine, worker: str) -> str | None:
        query = text("SELECT name FROM tasks WHERE worker = :worker AND state = 'running' AND attempt = 1")
        with engine.connect() as connection:
            return connection.execute(query, {"worker": worker}).scalar()

    def _state(self, engine: Engine, task: str) -> tuple[str, int]:
        with engine.connect() as connection:
            row = connection.execute(text("SELECT state, attempt FROM tasks WHERE name = :name"), {"name": task}).one()
        return (row.state, row.attempt)

    def _late(self, engine: Engine, task: str) -> str | None:
        query = text(
            "SELECT result FROM attempts JOIN tasks ON tasks.id = task_id "
            "WHERE name = :name AND attempts.attempt = 1 AND NOT counted"
        )
        with engine.connect() as connection:
            return connection.execute(query, {"name": task}).scalar()

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > give_up_at:
                raise StuckError(f"waited {WAIT_S:g} s in vain for {what}")
            for process in self.processes:
                process.tend()
            time.sleep(0.02)


def _faults(store: SqlStore, engine: Engine, job: str, late: str) -> list[str]:
    """One winner per key, each job done, nothing of the late answer among the measurements."""
    faults = [f"integrity: {fault}" for fault in store.check()]
    found = store.job(job)
    if str(found.state) != "done":
        faults.append(f"the job is {found.state}: {found.error}")
    winners = {key: store.winner(key) for key in found.keys}
    faults += [
        f"no verified winner for {key}" for key, winner in winners.items() if winner is None or not winner.times_s
    ]
    with engine.connect() as connection:
        twice = "SELECT key_id FROM winners WHERE is_current GROUP BY key_id HAVING count(*) > 1"
        if connection.execute(text(twice)).all():
            faults.append("a key has two winners")
        counted = "SELECT task_id FROM attempts WHERE counted GROUP BY task_id HAVING count(*) > 1"
        if connection.execute(text(counted)).all():
            faults.append("a task has two results that count")
        recorded = connection.execute(text("SELECT attempt FROM measurements")).scalars().all()
    if any(attempt in late for attempt in recorded):
        faults.append("the late answer was counted")
    print(f"{len(recorded)} measurements count, {len(found.keys)} shapes have one winner each")
    return faults


def _opens_connection(packet: bytes) -> bool:
    """Whether it is TCP with SYN and without ACK (RFC 9293, 3.1)."""
    if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != TCP:
        return False
    flags = packet[(packet[0] & 15) * 4 + 13]
    return bool(flags & SYN) and not flags & ACK


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _inside(namespace: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", "netns", "exec", namespace, *command], check=False, capture_output=True)


@contextlib.contextmanager
def _namespaces(count: int) -> Iterator[list[str]]:
    names = [f"autotune-{os.getpid()}-{number}" for number in range(count)]
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    ProbedDevices().names()  # a compiler is fetched, if it must be, before the network is gone
    raise SystemExit(main())
