"""A real browser on a real service: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from served import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parent.parent
WIDE, PHONE = {"width": 1320, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless, as root too."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, base_url: str, said: list[str], **options: Any) -> Iterator[Page]:
    """A page in a context of its own; what goes wrong in it is added to `said`."""

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(f"{message.type}: {message.text}")

    context = browser.new_context(base_url=base_url, viewport=WIDE, **options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", on_console)
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    yield page
    context.close()


class Serving:
    """`autotune serve`, the command itself; `start` it again on the same port after a `kill`."""

    def __init__(self, database: Path) -> None:
        self.database, self.port = database, free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "api.cli", "serve", "--json", "--port", str(self.port)]
        command += ["--db", str(self.database)]
        with self.database.with_suffix(".log").open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
            )
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline() or "null")
        assert said is not None, self.database.with_suffix(".log").read_text()
        self.url = str(said["url"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(database: Path) -> Iterator[Serving]:
    service = Serving(database)
    try:
        yield service
    finally:
        service.kill()
