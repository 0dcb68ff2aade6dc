"""Fuzz the HTTP interface with schemathesis, all checks, until so many requests were answered.

    python bench/fuzz.py                       100,000 requests, a third each as below
    python bench/fuzz.py --requests 2000 --seed 3

Three services in turn, each on a database of its own, with a scripted search instead of a device (tests/served.py):
on loopback; beyond it without a token, after which nothing may have been written; and with an admin's token.
Requests are counted by the service itself (`/metrics`). Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from served import Served, key_of, served, winner_of  # noqa: E402

from db import Scope, open_store  # noqa: E402

CONFIG = Path(__file__).with_name("schemathesis.toml")
SERVICES = ("loopback", "no token", "admin")
EXAMPLES = 100
"""Requests of one kind per operation and run of schemathesis; runs with other seeds follow until there are enough."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what schemathesis says of failures, then the number of requests."""
    options = _options(arguments)
    chosen = (options.only,) if options.only else SERVICES
    share = -(-options.requests // len(chosen))
    with tempfile.TemporaryDirectory() as directory:
        results = [
            _fuzz(Path(directory) / f"{name}.db", name, share, options)
            for name in chosen
        ]  # fmt: skip
    return 0 if all(results) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="in all (100000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help=f"per operation and run ({EXAMPLES})")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful", help="of schemathesis (all)")
    parser.add_argument("--only", choices=SERVICES, help="one of the three")
    return parser.parse_args(arguments)


def _fuzz(database: Path, name: str, requests: int, options: argparse.Namespace) -> bool:
    with open_store(database) as store:
        for size in (28, 56):
            store.decide(winner_of(key_of(64, size)))
        secret = store.create_token("fuzz", Scope.ADMIN)[1]
        before = store.counts()
    token = secret if name == "admin" else None
    hosts = [] if name == "loopback" else ["localhost"]
    good, runs = True, 0
    with served(database, hosts=hosts, public_reads=name == "no token") as service:
        while (answered := _answered(service, token)) < requests and good:
            good, runs = _run(service, token, options.seed + runs, options), runs + 1
        good &= service.process.poll() is None
        ready = service.http.get("/readyz", headers=_headers(token)).status_code == 200
    with open_store(database) as store:
        written = {table for table, count in store.counts().items() if count != before[table]}
        sound = not store.check()
    print(f"{name}: {answered} requests in {runs} runs, {'no' if good else 'SOME'} failures", flush=True)
    if name == "no token" and written:
        print(f"{name}: WRITTEN to {', '.join(sorted(written))}")
        good = False
    return good and ready and sound


def _run(service: Served, token: str | None, seed: int, options: argparse.Namespace) -> bool:
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{service.url}/openapi.json",
        "--checks", "all", "--phases", options.phases,
        "--max-examples", str(options.examples), "--seed", str(seed), "--continue-on-failure",
        "--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "60", "--max-response-time", "60",
    ]  # fmt: skip
    for header, value in _headers(token).items():
        command += ["--header", f"{header}: {value}"]
    with tempfile.TemporaryDirectory() as directory:  # for what it keeps beside itself
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print("\n".join(line[:300] for line in (done.stdout + done.stderr).splitlines()))
    return done.returncode == 0


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _answered(service: Served, token: str | None) -> int:
    text = service.http.get("/metrics", headers=_headers(token)).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return int(sum(sample.value for sample in samples if sample.name == "autotune_http_requests_total"))


if __name__ == "__main__":
    raise SystemExit(main())
