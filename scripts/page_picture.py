#!/usr/bin/env python3
"""A picture of the live page: an example through both systems, side by side.

    python scripts/page_picture.py docs/live.png

Needs the extras serve and browser, and Chromium (Debian package chromium).
"""

import argparse
import shutil
import sys
from pathlib import Path

from load_test import start_server
from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
PATIENCE_S = 120


def until(page, condition: str) -> None:
    """Wait for a JavaScript condition; the page's policy forbids Playwright's own waiting."""
    for _ in range(10 * PATIENCE_S):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise RuntimeError(f"{condition} did not come true in {PATIENCE_S} s")


def take(page, address: str, out: Path, sentences: int) -> None:
    page.goto(address)
    until(page, "document.querySelector('#model').options.length > 0")
    until(page, "document.querySelector('#example').options.length > 0")
    page.check("input[value=example]")
    page.select_option("#beside", index=1)
    page.click("#start")
    words = "document.querySelectorAll('.lane:first-child .translation li')"
    until(page, f"{words}.length >= {sentences}")
    page.wait_for_timeout(1000)
    page.screenshot(path=str(out), full_page=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--sentences", type=int, default=4, help="finished before it is taken")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        parser.error("Chromium is not installed")
    server, address = start_server([])
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": args.width, "height": 900})
            take(page, address.replace("ws://", "http://"), args.out, args.sentences)
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
