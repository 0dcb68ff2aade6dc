"""Screenshots of every view of the dashboard, of a real service in a real browser.

    python bench/screenshots.py --url http://127.0.0.1:8000 --out docs/images

Needs Debian's chromium (or --chromium PATH) and the playwright package. The shape shown is the one with the smallest
ratio. With --readme only the pictures that the documents show are taken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

WIDE, PHONE = {"width": 1320, "height": 860}, {"width": 390, "height": 844}
SHOWN = ("winners", "shape", "map")
"""What the documents show."""
SETTLED_MS = 1500
"""Until charts are drawn and Optuna has been asked."""


def main() -> None:
    """One PNG per view, theme and size, named after them."""
    options = _options()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    views = {"winners": "/?sort=ratio", "shape": f"/shape/{best_digest(options.url)}", "map": "/map",
             "compare": "/compare", "jobs": "/tuning"}  # fmt: skip
    wanted = [("light", False), ("dark", False), ("light", True), ("dark", True)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        if options.readme:
            views = {name: path for name, path in views.items() if name in SHOWN}
        for theme, phone in wanted[:1] if options.readme else wanted:
            for name, path in views.items():
                target = out / f"{name}{'-phone' if phone else ''}{'' if theme == 'light' else '-dark'}.png"
                shoot(browser, options.url + path, target, theme=theme, phone=phone, whole=not options.readme)
                print(target)
        browser.close()


def shoot(browser: Browser, url: str, target: Path, *, theme: str, phone: bool, whole: bool) -> None:
    """One view; `whole` takes the page to its end, else what fits the window."""
    context = browser.new_context(viewport=PHONE if phone else WIDE, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.wait_for_timeout(SETTLED_MS)
    page.screenshot(path=target, full_page=whole)
    context.close()


def best_digest(url: str) -> str:
    """The key of the winner with the smallest ratio. Exits if there is none."""
    with urllib.request.urlopen(f"{url}/winners?limit=1000") as answer:  # noqa: S310 - the caller's own service
        winners = json.load(answer)["winners"]
    if not winners:
        raise SystemExit("expected a service with winners, found none: tune a convolution first")
    return str(min(winners, key=lambda item: item["winner"]["ratio"][0])["digest"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of a running service")
    parser.add_argument("--out", default="screenshots", help="the folder they go to")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--readme", action="store_true", help="only what the documents show, one window each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
