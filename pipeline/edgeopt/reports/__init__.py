"""Writes a report in every form. Each renderer is one module with ``render(report) -> str``."""

from pathlib import Path

from edgeopt.config.files import write_text
from edgeopt.reports import csv, html, json, junit, markdown
from edgeopt.results import Report

RENDERERS = {
    "json": json.render,
    "md": markdown.render,
    "html": html.render,
    "junit": junit.render,
    "csv": csv.render,
}
"""What ``edgeopt report --format`` can write."""
WHOLE = {"report.json": "json", "report.md": "md", "report.html": "html", "junit.xml": "junit"}
"""Files of a run -> their form."""
PER_DEVICE = ("json", "md", "html")


def write_report(report: Report, folder: Path) -> None:
    """Write the files of a run below ``folder``, and ``devices/<device>.*``, each complete or not at all."""
    for name, form in WHOLE.items():
        write_text(folder / name, RENDERERS[form](report))
    for device in report.devices():
        for form in PER_DEVICE:
            write_text(folder / "devices" / f"{device}.{form}", RENDERERS[form](report.of_device(device)))
