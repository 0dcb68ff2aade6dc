"""Prove Dockerfile and docker-compose.yml where there is no container engine: every step, in Debian chroots.

    sudo python bench/image.py --work DIR                 build, then run
    sudo python bench/image.py --work DIR --bind /path/of/ca.crt --pass PIP_CERT     to reach a package index from here

Needs root, debootstrap and util-linux. Each stage of the Dockerfile is a directory under DIR, made by debootstrap or
copied from the stage it builds on; each RUN is run in it, as the user and with the environment it says. Then each
service of the compose file is started as a process: its own entry point, command, environment, volumes (with what the
image has there, as an engine does), a read-only root, no capabilities, in a network of its own; each must become
healthy by its own health check before those that depend on it begin. A shape is tuned through all of it, and all are
told to end. What is left out: the stage `cuda`, limits of resources, networks between containers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
SUITE = "bookworm"
LEFT_OUT = ("cuda",)
SHAPE = {"input": [1, 8, 12, 12], "weight": [8, 8, 3, 3], "padding": 1, "device": "CPU", "trials": 2}


@dataclass(kw_only=True)
class Image:
    """A stage, built: where it is and how its processes begin."""

    root: Path
    environ: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
    user: str = "root"
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def main() -> int:
    """Says what it does, and raises at the first thing that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty directory, or one of an earlier run")
    parser.add_argument("--bind", action="append", default=[], metavar="PATH", help="of this machine, for RUN steps")
    parser.add_argument("--pass", dest="names", action="append", default=[], metavar="NAME", help="of the environment")
    options = parser.parse_args()
    if os.environ.get("AUTOTUNE_IMAGE_NETWORK") != "own":
        images = build(options)
        print(f"built: {', '.join(images)}", flush=True)
        command = ["unshare", "--net", sys.executable, *sys.argv]
        return subprocess.run(command, env={**os.environ, "AUTOTUNE_IMAGE_NETWORK": "own"}, check=False).returncode
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    run(build(options), options.work)
    return 0


def build(options: argparse.Namespace) -> dict[str, Image]:
    """Every stage by name; those that an earlier run finished are taken as they are."""
    images: dict[str, Image] = {}
    for name, base, steps in stages((ROOT / "Dockerfile").read_text()):
        if name in LEFT_OUT:
            continue
        root = options.work / name
        done = options.work / f"{name}.done"
        built = done.exists()
        if not built:
            shutil.rmtree(root, ignore_errors=True)
            if base in images:
                subprocess.run(["cp", "-a", images[base].root, root], check=True)
            else:
                assert base.startswith(f"debian:{SUITE}"), f"expected an image of Debian {SUITE}, found {base}"
                subprocess.run(["debootstrap", "--variant=minbase", SUITE, root], check=True, stdout=subprocess.DEVNULL)
        image = images[name] = Image(root=root)
        for word, text in steps:
            step(image, word, text, options, built=built)
        done.touch()
    return images


def stages(text: str) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Name, base and steps of each stage of a Dockerfile."""
    lines = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ").splitlines()
    name, base, steps = "", "", list[tuple[str, str]]()
    for line in filter(str.strip, lines):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            if name:
                yield name, base, steps
            base, _, name = rest.split()
            steps = []
        else:
            steps.append((word, rest.strip()))
    yield name, base, steps


def step(image: Image, word: str, text: str, options: argparse.Namespace, *, built: bool) -> None:
    """One line of a Dockerfile. Raises on a word that is not known here."""
    if word == "RUN" and not built:
        print(f"RUN {text[:110]}", flush=True)
        with bound(image.root, options.bind):
            inside(image, ["/bin/sh", "-c", text], {n: os.environ[n] for n in options.names if n in os.environ})
    elif word == "COPY" and not built:
        *sources, target = text.split()
        place = image.root / target.lstrip("/")
        for source in (ROOT / source for source in sources):
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                end = place / source.name if target.endswith("/") else place
                end.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, end)
    elif word == "ENV":
        key, _, value = text.partition("=")
        image.environ[key] = value
    elif word == "USER":
        image.user = text
    elif word == "WORKDIR":
        image.directory = text
    elif word == "ENTRYPOINT":
        image.entrypoint = json.loads(text)
    elif word == "CMD":
        image.command = json.loads(text)
    elif word not in ("RUN", "COPY", "EXPOSE"):
        raise ValueError(f"expected a step that is known here, found {word}")


def inside(image: Image, command: list[str], environ: Mapping[str, str]) -> None:
    """Run a step as the image's user, with /proc."""
    script = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot --userspec="$1" "$0" "${@:2}"'
    environment = ["env", "-i", *(f"{key}={value}" for key, value in {**image.environ, **environ}.items())]
    within = ["bash", "-c", script, str(image.root), image.user, *environment, *command]
    subprocess.run(["unshare", "--mount", "--pid", "--fork", *within], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def bound(root: Path, paths: list[str]) -> Iterator[None]:
    """Files of this machine in the chroot, for one step: how to reach a package index from here."""
    with contextlib.ExitStack() as stack:
        for path in ["/etc/resolv.conf", *paths]:
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            made = not place.exists()
            place.mkdir() if made and Path(path).is_dir() else place.touch()
            subprocess.run(["mount", "--bind", path, place], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)  # no step may change this machine
            if made:
                stack.callback(place.rmdir if Path(path).is_dir() else place.unlink)
            stack.callback(subprocess.run, ["umount", place], check=True)
        yield


def run(images: Mapping[str, Image], work: Path) -> None:
    """The services without a profile, in the order they depend on each other."""
    for role in ("OWNER", "SERVICE", "WORKER"):
        os.environ.setdefault(f"{role}_PASSWORD", f"{role}'s pass@word/with ?signs")
    composed = yaml.safe_load(substituted((ROOT / "docker-compose.yml").read_text(), os.environ))
    services = {name: item for name, item in composed["services"].items() if not item.get("profiles")}
    shutil.rmtree(work / "volumes", ignore_errors=True)
    built = {item["image"]: images[item["build"]["target"]] for item in services.values() if "build" in item}
    containers: dict[str, Container] = {}
    try:
        while waiting := [n for n in services if n not in containers]:
            name = next(n for n in waiting if set(services[n].get("depends_on", {})) <= containers.keys())
            containers[name] = Container(name, services[name], built[services[name]["image"]], work)
            awaited = [item.get("depends_on", {}).get(name, {}).get("condition") for item in services.values()]
            if "service_completed_successfully" in awaited:
                containers[name].complete()
            else:
                containers[name].become_healthy()
        token = containers["service"].ask(["autotune", "token", "create", "check", "--scope", "admin"]).strip()
        print("tuned through service, database and worker:", tuned(token), flush=True)
        for name in [name for name in reversed(list(containers)) if containers[name].runs]:
            print(f"{name}: told to end, exit status {containers[name].stop()}", flush=True)
    finally:
        for container in containers.values():
            container.kill()


def substituted(text: str, environ: Mapping[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?error}` as compose has them, as YAML strings."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if name in environ:
            return json.dumps(environ[name])
        assert kind != "?", f"{name}: {rest}"
        return json.dumps(rest)

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", value, text)


class Container:
    """A service of the compose file, as a process in the chroot of its image."""

    def __init__(self, name: str, item: Mapping[str, Any], image: Image, work: Path) -> None:
        assert item["read_only"]
        assert item["cap_drop"] == ["ALL"]
        self._name, self._item, self._image = name, item, image
        self._environ = {**image.environ, **{key: str(value) for key, value in item.get("environment", {}).items()}}
        mounts = (
            [f"mount --bind {r} {r}", f"mount -o remount,ro,bind {r}"] if (r := shlex.quote(str(image.root))) else []
        )
        for entry in item.get("tmpfs", []):
            target, _, option = entry.partition(":")
            flags = "mode=1777,nosuid,nodev" + ("" if option == "exec" else ",noexec")
            mounts.append(f"mount -t tmpfs -o {flags} tmpfs {r}{target}")
        for entry in item.get("volumes", []):
            if isinstance(entry, dict):  # a folder of the host: one of ours here, with the rights that it is to have
                volume, target = entry["source"].strip("/").replace("/", "-"), entry["target"]
            else:
                volume, target = entry.split(":")
            source = work / "volumes" / volume
            (image.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)  # as an engine does
            if not source.exists():
                source.parent.mkdir(exist_ok=True)
                subprocess.run(["cp", "-a", image.root / target.lstrip("/"), source], check=True)
            mounts.append(f"mount --bind {shlex.quote(str(source))} {r}{target}")
        mounts += [f"mount -t proc proc {r}/proc", f"mount --rbind /dev {r}/dev"]
        self._script = " && ".join(mounts) + f' && exec chroot {r} "$@"'
        command = image.entrypoint + (item.get("command") or image.command)
        self._log = (work / f"{name}.log").open("w+")
        self._process = subprocess.Popen(self._within(command), stdout=self._log, stderr=self._log)

    def become_healthy(self) -> None:
        """As an engine finds out: by the health check, often enough."""
        check = self._item["healthcheck"]
        assert check["test"][0] == "CMD"
        give_up_at = time.monotonic() + float(check["start_period"].rstrip("s")) + 60
        while True:
            done = subprocess.run(self._within(check["test"][1:]), check=False, capture_output=True, text=True)
            if done.returncode == 0:
                print(f"{self._name}: healthy", flush=True)
                return
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self._log.seek(0)
                raise RuntimeError(f"{self._name} is not healthy: {done.stderr[-500:]}\n{self._log.read()[-3000:]}")
            time.sleep(1)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def complete(self, timeout_s: float = 120.0) -> None:
        """Until it has ended, well."""
        status = self._process.wait(timeout_s)
        if status != 0:
            self._log.seek(0)
            raise RuntimeError(f"{self._name} ended with status {status}: {self._log.read()[-3000:]}")
        print(f"{self._name}: completed", flush=True)

    def ask(self, command: list[str]) -> str:
        """What a command prints, as `docker compose exec` runs it."""
        return subprocess.run(self._within(command), check=True, capture_output=True, text=True).stdout

    def stop(self) -> int:
        """As an engine: the signal to its first process, then so long to end."""
        number = getattr(signal, self._item.get("stop_signal", "SIGTERM"))
        for pid in self._first():
            os.kill(pid, number)
        return self._process.wait(float(self._item.get("stop_grace_period", "10s").rstrip("s")))

    def kill(self) -> None:
        """Whatever is left."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _first(self) -> list[int]:
        """The process behind `unshare`."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def _within(self, command: list[str]) -> list[str]:
        users = (self._image.root / "etc/passwd").read_text().splitlines()
        user = next(line.split(":") for line in users if line.startswith(f"{self._image.user}:"))
        assert user[2] != "0", f"{self._name} runs as root"
        rights = [f"--reuid={user[2]}", f"--regid={user[3]}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
        environment = ["env", "-i", f"--chdir={self._image.directory}", *(f"{k}={v}" for k, v in self._environ.items())]
        return [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", self._script, "bash",
            "/usr/bin/setpriv", *rights, *environment, *command,
        ]  # fmt: skip


def tuned(token: str) -> str:
    """The winner of a small convolution, from `POST /tune` to `GET /winners`."""

    def ask(method: str, path: str, content: object = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://localhost:8000{path}", data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http
            return json.load(answer)

    job = ask("POST", "/tune", SHAPE)
    give_up_at = time.monotonic() + 300
    while job["state"] in ("queued", "running") and time.monotonic() < give_up_at:
        time.sleep(1)
        job = ask("GET", f"/jobs/{job['id']}")
    if job["state"] != "done":
        raise RuntimeError(f"the job is {job['state']}: {job['error']} {job['progress']}")
    return str(ask("GET", "/winners")["winners"][0]["name"])


if __name__ == "__main__":
    raise SystemExit(main())
