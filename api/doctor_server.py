"""The examinations behind `autotune doctor --server`: a running service, as one sees it from here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from api.doctor import Check, Level
from api.release import release
from api.settings import LOOPBACK_HOSTS, Settings
from autotune.client import Client, ServiceError, ServiceUnreachableError
from strategies.shape import JsonObject

LOOKUPS = 20
SLOW_S = 0.1
"""Of an empty lookup: the hook gives up after a few times as long."""
TIMEOUT_S = 10.0


def examine_server(settings: Settings) -> list[Check]:
    """Every examination of the service at `settings.url`; only one if it does not answer at all."""
    client = Client(settings.url, token=settings.token, timeout_s=TIMEOUT_S)
    try:
        said = client.health()
    except (ServiceError, ServiceUnreachableError) as error:
        advice = "start it with `autotune serve`, or name another with --server URL"
        if isinstance(error, ServiceError) and error.status == 401:
            advice = "make a token with `autotune token create` where its database is"
        return [Check(name="service", level=Level.FAULT, found=str(error), advice=advice)]
    checks = [_version(settings, said.get("version")), _way(settings)]
    for name, examine in (("token", _token), ("ready", _ready), ("workers", _workers), ("lookup", _speed)):
        try:
            checks.extend(examine(client))
        except ServiceUnreachableError as error:  # it was there for the one before
            checks.append(Check(name=name, level=Level.FAULT, found=str(error), advice="see the service's own log"))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            found = f"an answer that no release known here gives ({type(error).__name__}: {error})"
            advice = "check that the address is that of the service, and of which release it is"
            checks.append(Check(name=name, level=Level.FAULT, found=found, advice=advice))
    return checks


def _version(settings: Settings, theirs: object) -> Check:
    same = theirs == release()
    return Check(
        name="service", level=Level.OK if same else Level.WARNING, found=f"{settings.url} answers, version {theirs}",
        advice="" if same else f"here is {release()}: keys and bundles of two releases may differ, use one of them",
    )  # fmt: skip


def _way(settings: Settings) -> Check:
    parts = urlsplit(settings.url)
    if parts.scheme == "https" or parts.hostname in LOOPBACK_HOSTS:
        return Check(name="way there", level=Level.OK, found=f"{parts.scheme} to {parts.hostname}")
    return Check(
        name="way there", level=Level.WARNING, found=f"{parts.scheme} to {parts.hostname}: all can read it on the way",
        advice="put TLS in front of it (docs/security.md) and use https://, above all with a token",
    )  # fmt: skip


def _token(client: Client) -> Iterator[Check]:
    try:
        said = client.token()
    except ServiceError as error:
        yield Check(name="token", level=Level.FAULT, found=str(error), advice="set AUTOTUNE_TOKEN to one that holds")
        return
    if said["scope"] is None:
        yield Check(name="token", level=Level.OK, found="none sent, none needed to read")
        return
    left_s = None if said["expires_at"] is None else said["expires_at"] - time.time()
    until = "" if left_s is None else f", for {left_s / 86400:.1f} days more"
    soon = left_s is not None and left_s < 7 * 86400
    yield Check(
        name="token", level=Level.WARNING if soon else Level.OK, found=f"{said['name']} may {said['scope']}{until}",
        advice="have the next one made soon" if soon else "",
    )  # fmt: skip


def _ready(client: Client) -> Iterator[Check]:
    try:
        said = client.ready()
        yield Check(name="ready", level=Level.OK, found=f"{said['queued']} jobs queued, {said['running']} running")
    except ServiceError as error:
        yield Check(name="ready", level=Level.FAULT, found=str(error), advice="see the service's own log")
    try:
        devices = client.devices()["devices"]
    except ServiceError as error:
        yield Check(name="devices", level=Level.WARNING, found=str(error), advice="it looks up, but cannot tune")
        return
    for device in devices:
        level = Level.WARNING if "error" in device else Level.OK
        found = device.get("error") or ", ".join(filter(None, (device["spec"]["arch"], device["spec"]["renderer"])))
        yield Check(name=f"device {device['device']}", level=level, found=found or "there")


def _workers(client: Client) -> Iterator[Check]:
    try:
        yield from examine_workers(client.workers()["workers"])
    except ServiceError as error:
        yield Check(name="workers", level=Level.WARNING, found=str(error), advice="see the service's own log")


def examine_workers(workers: Sequence[JsonObject]) -> Iterator[Check]:
    """Of a fleet, as GET /workers has it: why some take no more work, and whether any does for each kind of device."""
    here = [worker for worker in workers if not worker["ended"]]
    for worker in here:
        if worker["alive"] and worker["unfit"]:
            found = f"takes no more work: {worker['unfit']}"
            yield Check(
                name=f"worker {worker['name']}", level=Level.WARNING, found=found, advice="end it, start another"
            )
    for device in dict.fromkeys(worker["device"]["device"] for worker in here):
        mine = [worker for worker in here if worker["device"]["device"] == device]
        fit = sum(worker["alive"] and not worker["unfit"] for worker in mine)
        silent_s = min(worker["silent_s"] for worker in mine)
        yield Check(
            name=f"workers for {device}", level=Level.OK if fit else Level.WARNING,
            found=f"{fit} take work" if fit else f"none takes work, one was heard of {silent_s:.0f} s ago",
            advice="" if fit else f"look at its log, or start one: autotune worker --device {device} --db ...",
        )  # fmt: skip


def _speed(client: Client) -> Iterator[Check]:
    times = []
    try:
        for _ in range(LOOKUPS):
            started = time.perf_counter()
            client.lookup_keys([])
            times.append(time.perf_counter() - started)
    except ServiceError as error:
        yield Check(name="lookup", level=Level.FAULT, found=str(error), advice="the hook will find nothing there")
        return
    middle = sorted(times)[LOOKUPS // 2]
    yield Check(
        name="lookup", level=Level.OK if middle < SLOW_S else Level.WARNING,
        found=f"{middle * 1e3:.1f} ms, on a new connection",
        advice="" if middle < SLOW_S else "the hook waits that long per graph: an exported file would be quicker",
    )  # fmt: skip
