"""Fuzz the HTTP interface with schemathesis, all checks, until so many requests were answered.

    python bench/fuzz.py --jobs 16 --deadline 9m     100,000 requests, a third each as below
    python bench/fuzz.py --requests 2000 --seed 3

Services of three kinds, each on a database of its own, with a scripted search instead of a device (tests/served.py):
on loopback; beyond it without a token, after which nothing may have been written; and with an admin's token.
`--jobs` of them are fuzzed side by side, each by a schemathesis of its own, which is begun again with another seed
until the service has answered its share. Requests are counted by the services themselves (`/metrics`). The last line
is the verdict; exit status 1 if a check fails, anything was answered with a 5xx, or the deadline came first. A request
that schemathesis' own client refused to send (UNSENT) says nothing of the service: the verdict counts them apart.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from served import Served, key_of, served, winner_of  # noqa: E402

from autotune.job import Budget  # noqa: E402
from db import Scope, open_store  # noqa: E402

CONFIG = Path(__file__).with_name("schemathesis.toml")
SERVICES = ("loopback", "no token", "admin")
DAY_S = 86400.0
EXAMPLES = 100
"""Requests of one kind per operation and run of schemathesis; runs with other seeds follow until there are enough.
Beginning a run (imports, the document, tables of characters) takes as long as 300 requests."""
VARIED = {"fuzzing": 1, "stateful": 4}
"""Phases that ask for something else with every seed, and in which of the runs after a service's first, which has all
of them: a request of the stateful ones takes three times as long as another."""
SECTION = re.compile(r"(?m)^_{2,} (.+) _{2,}\n")
"""What schemathesis writes above what it found in an operation."""
SECTION_END = re.compile(r"(?m)^(?:=+ |Need more help\?)")
ONLY_ERRORS = re.compile(r"(?m)^=+ (\d+) errors? in \S+ =+\s*\Z")
UNSENT = re.compile(
    r"\s*Runtime Error\n\n(urllib3\.util\.SKIP_HEADER only supports [^\n]+)\n\n"
    r"    Traceback \(most recent call last\):\n(?:      [^\n]*\n)+    ValueError: \1\n"
    r"(?:    Reproduce with:\n        [^\n]+\n)?\s*"
)
"""All that was found in an operation: a header's value was urllib3's own sign for "leave it out", which it refuses to
send. Hypothesis takes such constants from the modules that are loaded, its client's included."""
RUN_S, END_S = 300.0, 20.0
"""With a deadline schemathesis repeats its phases for so long, beginning once, and has this long to end before it."""


@dataclass(kw_only=True)
class Share:
    """What one service was asked and said."""

    name: str
    statuses: Counter[int] = field(default_factory=Counter)
    runs: int = 0
    unsent: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what schemathesis says of failures, a line per service, then the verdict."""
    options = _options(arguments)
    started = time.monotonic()
    options.ends_at = started + options.deadline
    chosen = (options.only,) if options.only else SERVICES
    count = max(options.jobs, len(chosen))
    each = -(-options.requests // count)
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(options.jobs) as threads:
        shares = list(
            threads.map(
                lambda at: _fuzz(Path(directory) / f"{at}.db", chosen[at % len(chosen)], at, each, options),
                range(count),
            )
        )
    return 0 if _verdict(shares, time.monotonic() - started, options) else 1


def _verdict(shares: Sequence[Share], taken_s: float, options: argparse.Namespace) -> bool:
    statuses = sum((share.statuses for share in shares), Counter[int]())
    answered, faults = statuses.total(), [fault for share in shares for fault in share.faults]
    broken = {status: count for status, count in statuses.items() if status >= 500}
    said = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
    print(f"statuses: {said}")
    held = not faults and not broken and answered >= options.requests
    print(
        f"fuzz: {'HELD' if held else 'NOT HELD'}: {answered} of {options.requests} requests in {taken_s:.0f} s "
        f"({answered / taken_s:.0f} per second, {options.jobs} side by side), {len(faults)} faults, "
        f"{sum(broken.values())} answers of 5xx, {sum(share.unsent for share in shares)} times a request that "
        f"schemathesis' client would not send ended an operation's turn; seed {options.seed}"
    )
    for fault in faults:
        print(f"  {fault}")
    return held


def _seconds(text: str) -> float:
    return float(Budget.parse(text).seconds or 0.0)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="in all (100000)")
    parser.add_argument("--jobs", type=int, default=1, help="services fuzzed side by side (1)")
    parser.add_argument(
        "--deadline", type=_seconds, default=2 * DAY_S, metavar="TIME", help="to end by, like 9m (none)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help=f"per operation and run ({EXAMPLES})")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful", help="of schemathesis (all)")
    parser.add_argument("--only", choices=SERVICES, help="one of the three")
    return parser.parse_args(arguments)


def _fuzz(database: Path, name: str, number: int, requests: int, options: argparse.Namespace) -> Share:
    share = Share(name=f"{name} {number}")
    with open_store(database) as store:
        for size in (28, 56):
            store.decide(winner_of(key_of(64, size)))
        store.cancel(store.submit([key_of(64, 14)], Budget(trials=4)).id)  # to follow, and to try again
        secret = store.create_token("fuzz", Scope.ADMIN)[1]
        before = store.counts()
    token = secret if name == "admin" else None
    hosts = [] if name == "loopback" else ["localhost"]
    seed = options.seed + 1000 * number
    with served(database, hosts=hosts, public_reads=name == "no token") as service:
        while share.answered < requests and not share.faults:
            left_s = options.ends_at - time.monotonic()
            if left_s < 2 * END_S:
                break
            phases = options.phases.split(",")
            if share.runs:
                phases = [phase for phase in phases if phase in VARIED and share.runs % VARIED[phase] == 0]
            faults, unsent = _run(service, token, seed + share.runs, left_s, phases, options.examples)
            share.faults, share.unsent = share.faults + faults, share.unsent + unsent
            share.runs += 1
            share.statuses = _answered(service, token)
        if service.process.poll() is not None:
            share.faults.append("the service has ended")
        elif service.http.get("/readyz", headers=_headers(token)).status_code != 200:
            share.faults.append("the service is not ready")
    share.faults += [line.strip()[:300] for line in service.log if "Traceback" in line or " ERROR " in line]
    with open_store(database) as store:
        written = {table for table, count in store.counts().items() if count != before[table]}
        share.faults += store.check()
    if name == "no token" and written:
        share.faults.append(f"WRITTEN without a token: {', '.join(sorted(written))}")
    share.faults = [f"{share.name}: {fault}" for fault in share.faults]
    found = f"{len(share.faults)} FAULTS" if share.faults else "no failures"
    print(f"{share.name}: {share.answered} requests in {share.runs} runs, {found}", flush=True)
    return share


def _run(
    service: Served, token: str | None, seed: int, left_s: float, phases: Sequence[str], examples: int
) -> tuple[list[str], int]:
    """One run of schemathesis: what it found, and how often a request never left. Of all its checks one is not for us:
    DELETE ends a job, and what became of it stays to be read."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{service.url}/openapi.json",
        "--checks", "all", "--exclude-checks", "use_after_free", "--phases", ",".join(phases),
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure",
        "--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "60", "--max-response-time", "60",
    ]  # fmt: skip
    if left_s < DAY_S:
        command += ["--max-time", str(int(min(RUN_S, left_s - END_S)))]
    for header, value in _headers(token).items():
        command += ["--header", f"{header}: {value}"]
    with tempfile.TemporaryDirectory() as directory:  # for what it keeps beside itself
        try:
            done = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, check=False, timeout=left_s + 5
            )
        except subprocess.TimeoutExpired:
            return [f"seed {seed}: the deadline came in the middle of a run, whose failures are not known"], 0
    if done.returncode == 0:
        return [], 0
    found, unsent = found_in(done.stdout)
    if unsent and not found:
        print(f"seed {seed}: not sent, in {unsent} operations: a header's value was urllib3's SKIP_HEADER", flush=True)
        return [], unsent
    print("\n".join(line[:300] for line in (done.stdout + done.stderr).splitlines()), flush=True)
    found = found or [f"schemathesis ended with status {done.returncode}"]
    return [f"seed {seed}: {what}" for what in found], unsent


def found_in(said: str) -> tuple[list[str], int]:
    """Of what schemathesis printed at the end of a run that failed: the operations with anything wrong, and the number
    of those where nothing is but a request that never left. If its own count is another, all are wrong."""
    _, *parts = SECTION.split(said)
    bodies = [(title, SECTION_END.split(body)[0]) for title, body in zip(parts[::2], parts[1::2], strict=True)]
    wrong = [title for title, body in bodies if not UNSENT.fullmatch(body)]
    count = ONLY_ERRORS.search(said)
    if not wrong and (count is None or int(count[1]) != len(bodies)):
        return [title for title, _ in bodies], 0
    return wrong, len(bodies) - len(wrong)


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _answered(service: Served, token: str | None) -> Counter[int]:
    """How often each status was answered."""
    text = service.http.get("/metrics", headers=_headers(token)).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    found = Counter[int]()
    for sample in samples:
        if sample.name == "autotune_http_requests_total":
            found[int(sample.labels["status"])] += int(sample.value)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
