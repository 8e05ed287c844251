"""Report formats. Each renderer is one module with ``render(report) -> str``."""

from importlib import import_module
from pathlib import Path

from edgeopt.config.files import write_text
from edgeopt.results import Report

RENDERERS = {"json": "json", "md": "markdown", "html": "html", "junit": "junit", "csv": "csv"}
"""Values of ``edgeopt report --format``, with the module of each, which is imported on use."""
RUN_FILES = {"report.json": "json", "report.md": "md", "report.html": "html", "junit.xml": "junit"}
"""Report files of a run, and their formats."""
PER_DEVICE = ("json", "md", "html")
LINKED = ("md", "html")
"""Formats with links to the files of the run."""


def render(report: Report, form: str, base: str = "") -> str:
    """The text of a report in one of the formats ``RENDERERS``.

    ``base`` leads from the file to the run's folder, such as ``../``.
    """
    renderer = import_module(f"edgeopt.reports.{RENDERERS[form]}").render
    text: str = renderer(report, base) if form in LINKED else renderer(report)
    return text


def write_report(report: Report, folder: Path) -> None:
    """Write the report files of a run to ``folder``, and ``devices/<device>.*``; each write is atomic."""
    for name, form in RUN_FILES.items():
        write_text(folder / name, render(report, form))
    for device in report.devices():
        for form in PER_DEVICE:
            write_text(folder / "devices" / f"{device}.{form}", render(report.of_device(device), form, "../"))
