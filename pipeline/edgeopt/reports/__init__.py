"""Writes a report in every form. Each renderer is one module with ``render(report) -> str``."""

from pathlib import Path

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
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    for name, form in WHOLE.items():
        _write(folder / name, RENDERERS[form](report))
    for device in report.devices():
        for form in PER_DEVICE:
            _write(folder / "devices" / f"{device}.{form}", RENDERERS[form](report.of_device(device)))


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, "utf-8")
    scratch.replace(path)
