"""Size of the report page, and time until it is interactive: 6 variants, 4 formats, 4 devices.

    python benchmarks/page.py [--loads 10]

Prints the bytes of the page, without thumbnails, with the maximum number, and with those of a detector of 80
classes, and the milliseconds until the page can be sorted, filtered and hovered, in a fresh Chromium context
each time (median, minimum and maximum).
Needs Debian's chromium and the extra ``test``.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from edgeopt.reports import html
from edgeopt.reports.thumbnails import OVERLAID, PLAIN

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from large_report import large_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=10)
    loads = parser.parse_args().loads
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no chromium: apt-get install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        cases = {
            "without thumbnails": large_report(),
            f"with {PLAIN.samples} thumbnails": large_report(pictures=PLAIN.samples),
            f"of a detector, with {OVERLAID.samples} thumbnails": large_report(
                pictures=OVERLAID.samples, boxes=20
            ),
        }
        for name, report in cases.items():
            page = Path(folder) / "report.html"
            page.write_text(html.render(report), "utf-8")
            ready = []
            for _ in range(loads):
                with browser.new_context() as context:
                    tab = context.new_page()
                    tab.goto(page.as_uri())
                    tab.wait_for_selector("html[data-ready]")
                    ready.append(tab.evaluate("Number(document.documentElement.dataset.ready)"))
            print(
                f"{name}: {page.stat().st_size:,} bytes, ready in {statistics.median(ready):.0f} ms "
                f"({min(ready):.0f} to {max(ready):.0f})",
                flush=True,
            )
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
