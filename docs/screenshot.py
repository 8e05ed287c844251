"""Takes the picture of a report's first screen that the README shows.

    python docs/screenshot.py artifacts/runs/latest [docs/report.png]

It needs chromium and playwright (the extra ``test``); the page is drawn anew from ``report.json``.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import typer
from playwright.sync_api import sync_playwright

from edgeopt.reports import html
from edgeopt.results import Report

WIDTH, HEIGHT = 1280, 900
LARGEST = 200_000
"""Bytes of the picture, at most: it is kept in the repository."""


def main() -> None:
    """Read the arguments, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).with_name("report.png"))
    given = parser.parse_args()
    report = Report.model_validate_json((given.run / "report.json").read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(html.render(report), "utf-8")
        take(page, given.out)
    size = given.out.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{given.out} has {size:,} bytes, more than {LARGEST:,}: take a smaller report")
    typer.echo(f"{given.out}: {size:,} bytes")


def take(page: Path, out: Path, *, width: int = WIDTH, height: int = HEIGHT, scheme: str = "light") -> None:
    """Picture of what a browser of this size shows first."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab.goto(page.absolute().as_uri())
        tab.wait_for_selector("html[data-ready]")
        tab.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main()
