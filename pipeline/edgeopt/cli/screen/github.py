"""GitHub Actions output of a run: the step summary, and an annotation per failure."""

import os
from pathlib import Path

import typer

from edgeopt.config.files import writing
from edgeopt.reports import markdown
from edgeopt.results import Report


def report_to_github(report: Report) -> None:
    """Write the step summary and the annotations if running in GitHub Actions.

    Annotations go to stderr, which the runner parses as well: stdout is reserved for the result.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        path = Path(summary)
        with writing(path, "unset GITHUB_STEP_SUMMARY"), path.open("a", encoding="utf-8") as file:
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
    """Escape the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
