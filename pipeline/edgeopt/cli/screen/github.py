"""What GitHub Actions shows of a run: a summary on the job's page, and an annotation per gate that blocks."""

import os
from pathlib import Path

import typer

from edgeopt.reports import markdown
from edgeopt.results import Report


def tell_github(report: Report) -> None:
    """Write the step summary and the annotations, where this runs as a step of GitHub Actions.

    Annotations go to stderr, which the runner reads as well: stdout is the result alone.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(markdown.render(report) + "\n")
    for result in report.results:
        if result.status != "ok":
            _annotate("error", f"{result.variant}.{result.format} on {result.device}", result.reason)
    for verdict in report.gates:
        if verdict.status != "pass":
            title = f"{verdict.gate}: {verdict.variant}.{verdict.format} on {verdict.device}"
            _annotate("error" if verdict.blocks else "warning", title, f"{verdict.status}: {verdict.reason}")


def _annotate(level: str, title: str, message: str) -> None:
    typer.echo(f"::{level} title={_property(title)}::{_data(message)}", err=True)


def _data(text: str) -> str:
    """Text in a workflow command: what would end the command is escaped."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
