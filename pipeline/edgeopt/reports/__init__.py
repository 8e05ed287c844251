"""Report formats. Each renderer is one module with ``render(report) -> str``."""

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
"""Values of ``edgeopt report --format``."""
RUN_FILES = {"report.json": "json", "report.md": "md", "report.html": "html", "junit.xml": "junit"}
"""Report files of a run, and their formats."""
PER_DEVICE = ("json", "md", "html")


def write_report(report: Report, folder: Path) -> None:
    """Write the report files of a run to ``folder``, and ``devices/<device>.*``; each write is atomic."""
    for name, form in RUN_FILES.items():
        write_text(folder / name, RENDERERS[form](report))
    for device in report.devices():
        for form in PER_DEVICE:
            write_text(folder / "devices" / f"{device}.{form}", RENDERERS[form](report.of_device(device)))
