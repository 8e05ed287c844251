"""Writes a report in every form. Each renderer is one module with ``render(report) -> str``."""

from pathlib import Path

from edgeopt.reports import json, markdown
from edgeopt.results import Report

RENDERERS = {"json": json.render, "md": markdown.render}
"""File suffix -> what writes it."""


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.*`` and ``devices/<device>.*`` below ``folder``, each file complete or not at all."""
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    for suffix, render in RENDERERS.items():
        _write(folder / f"report.{suffix}", render(report))
        for device in report.devices():
            _write(folder / "devices" / f"{device}.{suffix}", render(report.of_device(device)))


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, "utf-8")
    scratch.replace(path)
