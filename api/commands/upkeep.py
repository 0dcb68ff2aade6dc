"""`autotune backup` and `autotune prune`: keeping a database, while it is used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from api.arguments import add_database, add_json
from api.console import Console
from api.database import open_database
from api.settings import Settings
from api.units import parse_age

BACKUP_EXAMPLES = """examples:
  autotune backup winners-and-all.db
  autotune backup --db postgresql+psycopg://autotune@db.example/autotune autotune.dump

A copy of an SQLite file is one itself: restore it by naming it with --db. To put it where the other one was, end the
service first, and remove what is beside it with -wal and -shm at its end. Of PostgreSQL, pg_restore reads it; the
service's image of docker-compose.yml has no pg_dump, its database's has:

  docker compose exec -T db pg_dump -U postgres --format=custom autotune > autotune.dump"""
PRUNE_EXAMPLES = """examples:
  autotune prune --older-than 180d --dry-run
  autotune prune --older-than 180d

What goes: measurements, winners that were superseded that long ago, jobs and tasks that have ended, workers that are
gone. What stays: every current winner and the measurements it rests on, what somebody pinned, revoked or banned, of
each candidate on each device the last measurement, from which a search goes on, and the last that went well, and the
last worker of each device. Of workers that were not heard of for a day the last twenty of each device stay, however old
the others are. A service does this itself, once a day, for what is older than
AUTOTUNE_RETENTION (1y; 0: never)."""


def register(commands: Any) -> None:
    """Add both commands."""
    backup = commands.add_parser("backup", help="copy the database while it is in use", epilog=BACKUP_EXAMPLES)
    backup.add_argument("file", metavar="FILE", help="where to: nothing may be there yet")
    add_database(backup)
    add_json(backup)
    backup.set_defaults(run=run_backup)
    prune = commands.add_parser("prune", help="remove old measurements, former winners and jobs", epilog=PRUNE_EXAMPLES)
    prune.add_argument("--older-than", metavar="TIME", required=True, help="90d, 1y")
    prune.add_argument("--dry-run", action="store_true", help="only say how many there are")
    add_database(prune)
    add_json(prune)
    prune.set_defaults(run=run_prune)


def run_backup(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """The whole copy or none."""
    with open_database(settings) as store:
        store.backup(args.file)
    if args.json:
        console.json({"database": str(store), "file": args.file, "bytes": Path(args.file).stat().st_size})
    else:
        console.note(f"{store} copied to {args.file}")
    return 0


def run_prune(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Says how many."""
    age_s = parse_age(args.older_than)
    with open_database(settings) as store:
        before = store.now() - age_s
        count = store.prunable(before) if args.dry_run else store.prune(before)
    if args.json:
        console.json({"dry_run": args.dry_run, **count})
    else:
        named = (
            f"{count['measurements']} measurements, {count['winners']} former winners, {count['jobs']} jobs, "
            f"{count['tasks']} tasks and {count['workers']} workers"
        )
        console.text(f"{named} {'would be' if args.dry_run else 'were'} removed")
    return 0
