"""GitHub Actions output of a run: the job summary, outputs, and an annotation per failure."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from edgeopt.commands.judge import recipe_text
from edgeopt.config.files import writing
from edgeopt.config.withheld import whole_environment
from edgeopt.errors import EdgeoptError, RecipeError
from edgeopt.evaluation.judgement import Judgement
from edgeopt.reports import markdown
from edgeopt.reports.ci.annotations import Annotation, annotations, of_failure
from edgeopt.reports.plain import printable
from edgeopt.results import Report

SHOWN = 10
"""Annotations of each level that GitHub shows of one step."""
SUMMARY = 1 << 20
"""Bytes of the summary of one step."""


def is_active() -> bool:
    """Whether this process is part of a GitHub Actions job."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def report_to_github(report: Report, recipe: str = "") -> None:
    """Write the job summary and the annotations if running in GitHub Actions."""
    if is_active():
        file, text = recipe_text(recipe, os.environ)
        summarize(markdown.render(report))
        annotate(annotations(Judgement(report, report.gates), text), file)


def failure_to_github(error: EdgeoptError) -> None:
    """Annotate the error that ends a command, if running in GitHub Actions; of a recipe, at its lines."""
    if is_active():
        root = os.environ.get("GITHUB_WORKSPACE") or "."
        annotate(
            of_failure(error), os.path.relpath(error.file, root) if isinstance(error, RecipeError) else ""
        )


def summarize(*texts: str) -> None:
    """Append the first of the texts that fits to the job summary."""
    place = whole_environment().get("GITHUB_STEP_SUMMARY")
    text = next((text for text in texts if len(text.encode()) < SUMMARY), "")
    if place:
        with writing(Path(place), "unset GITHUB_STEP_SUMMARY"), open(place, "a", encoding="utf-8") as file:
            file.write(text + "\n")


def set_outputs(outputs: Mapping[str, str]) -> None:
    """Append the outputs of the step; no value can end early or define another."""
    place = whole_environment().get("GITHUB_OUTPUT")
    if place:
        with writing(Path(place), "unset GITHUB_OUTPUT"), open(place, "a", encoding="utf-8") as file:
            for name, value in outputs.items():
                end = f"end-{uuid.uuid4().hex}"
                file.write(f"{name}<<{end}\n{value}\n{end}\n")


def annotate(found: Sequence[Annotation], file: str = "") -> None:
    """Print annotations, at lines of a file of the repository if one is given.

    They go to stderr, which the runner parses as well: stdout is reserved for the result.
    """
    for level in ("error", "warning"):
        same = [annotation for annotation in found if annotation.level == level]
        # The last one that is shown says how many are not.
        shown = same if len(same) <= SHOWN else same[: SHOWN - 1]
        for annotation in shown:
            place = f"file={_property(file)},line={max(annotation.line, 1)}," if file else ""
            title = _property(annotation.title)
            typer.echo(f"::{level} {place}title={title}::{_data(annotation.message)}", err=True)
        if len(shown) < len(same):
            typer.echo(f"::{level}::and {len(same) - len(shown)} more, in the report", err=True)


def notice(message: str) -> None:
    """Print a message to stderr; in GitHub Actions, as an annotation that fails nothing."""
    typer.echo(f"::notice title=edgeopt::{_data(message)}" if is_active() else message, err=True)


def _data(text: str) -> str:
    """Escape the message of a workflow command."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
