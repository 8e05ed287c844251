"""``baseline`` and ``check``: a run compared with an earlier one, sample by sample."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import compare
from edgeopt.cli.options import (
    AsJson,
    DataRoot,
    DeviceFolders,
    Devices,
    Formats,
    Sets,
    StoreFolder,
    Variants,
    folders,
)

if TYPE_CHECKING:
    from edgeopt.evaluation.judgement import Judgement
    from edgeopt.evaluation.regression import Limits
    from edgeopt.recipe.selection import Selection
    from edgeopt.results import Report

app = typer.Typer(help="Record the current results in a small file to commit.", no_args_is_help=True)
BASELINE = Path("baseline.json")


@app.command("write")
def write(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its report.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = BASELINE,
    variant: compare.Variants = None,
    format: compare.Formats = None,
    device: compare.Devices = None,
) -> None:
    """Write the results of a run to a baseline file, to commit and to compare later runs with."""
    from edgeopt.cli.report import read_report
    from edgeopt.commands.judge import part_of
    from edgeopt.evaluation.baseline import baseline_of, write_baseline
    from edgeopt.recipe.selection import Selection

    selection = Selection(tuple(variant or ()), tuple(format or ()), tuple(device or ()))
    baseline = baseline_of(part_of(read_report(run), selection))
    write_baseline(baseline, out)
    typer.echo(f"{out}: {len(baseline.entries)} artifacts, {out.stat().st_size:,} bytes")


MaxDrop = Annotated[float, typer.Option(help="Largest accuracy drop allowed, as a fraction.")]
Confidence = Annotated[float, typer.Option(help="Confidence level of a verdict.")]
Undecided = Annotated[str, typer.Option(help="Verdict when the samples are inconclusive: fail or pass.")]
MaxSizeIncrease = Annotated[float, typer.Option(help="Largest size increase allowed, as a fraction.")]
MaxLatencyRatio = Annotated[
    float | None,
    typer.Option(
        help="Largest latency ratio allowed to the baseline's artifacts, which are taken from the store "
        "and timed in turns with the new ones. Default: latency is not judged."
    ),
]


def check(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe to run, or a run's folder.")
    ],
    against: Annotated[Path, typer.Option("--against", help="The baseline file.")] = BASELINE,
    max_drop: MaxDrop = 0.01,
    confidence: Confidence = 0.95,
    undecided: Undecided = "fail",
    max_size_increase: MaxSizeIncrease = 0.02,
    max_latency_ratio: MaxLatencyRatio = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Replace the baseline, or the selected part; show the differences."),
    ] = False,
    comment: Annotated[
        Path | None, typer.Option(help="Write a Markdown comment for the pull request to this file.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    variant: Variants = None,
    format: Formats = None,
    device: Devices = None,
    sets: Sets = None,
    data_root: DataRoot = None,
    device_folder: DeviceFolders = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Check at a given confidence whether a run is worse than the baseline.

    Accuracy is compared sample by sample. With that confidence, the check fails if the drop exceeds
    --max-drop, and passes if it does not. Otherwise it is undecided; an unchanged artifact always passes.

    Exit code 0: no worse. 1: worse, or undecided. 2: the baseline does not match. 3: something could not run.
    """
    import json

    from edgeopt.cli.screen import github
    from edgeopt.cli.screen.tables import show_verdicts
    from edgeopt.commands.judge import comparable, judge, recipe_text, updated
    from edgeopt.config.files import writing
    from edgeopt.evaluation.baseline import baseline_of, differences, read_baseline, write_baseline
    from edgeopt.recipe.selection import Selection
    from edgeopt.reports import junit as junits
    from edgeopt.reports.ci import comment as comments
    from edgeopt.reports.ci.annotations import annotations

    limits = limits_of(max_drop, confidence, undecided, max_size_increase)
    baseline = None if update and not against.exists() else read_baseline(against)
    selection = Selection(tuple(variant or ()), tuple(format or ()), tuple(device or ()))
    if baseline is not None and not update:
        baseline = comparable(baseline, selection)
    report = _report(target, sets, selection, data_root, folders(device_folder), store)
    if update:
        fresh = updated(baseline, baseline_of(report), selection)
        for line in differences(baseline, fresh) if baseline else ["a new baseline"]:
            typer.echo(line)
        write_baseline(fresh, against)
        typer.echo(f"{against} now records this run")
        return
    judgement, unjudged = judge(
        report,
        baseline,
        limits,
        run=report.folder or (Path(target) if os.path.isdir(target) else Path(target).parent),
        max_latency_ratio=max_latency_ratio,
        store=store,
        device_folders=folders(device_folder),
    )
    show_unjudged(unjudged)
    verdicts = judgement.compared
    body = comments.render(judgement)
    judged = report.model_copy(update={"gates": verdicts})
    for path, text in ((comment, body), (junit, junits.render(judged))):
        if path is not None:
            with writing(path, "give another file"):
                path.write_text(text, "utf-8")
    if as_json:
        typer.echo(json.dumps([verdict.model_dump(mode="json") for verdict in verdicts], indent=2))
    else:
        show_verdicts(verdicts)
    if github.is_active():
        github.summarize(body)
        file, text = recipe_text(target, os.environ)
        github.annotate(annotations(judgement, text), file)
    if not as_json:
        typer.echo(_conclusion(judgement, against))
    raise typer.Exit(judgement.exit_code)


def limits_of(max_drop: float, confidence: float, undecided: str, max_size_increase: float) -> "Limits":
    """The limits that the options state.

    Raises:
        UsageError: a value is out of range.
    """
    from pydantic import ValidationError

    from edgeopt.errors import UsageError
    from edgeopt.evaluation.regression import Limits

    try:
        return Limits.model_validate(
            {
                "max_drop": max_drop,
                "confidence": confidence,
                "undecided": undecided,
                "max_size_increase": max_size_increase,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg'].lower()}") from error


def show_unjudged(reasons: "Sequence[str]") -> None:
    for reason in reasons:
        typer.echo(f"latency not judged: {reason}", err=True)


def _conclusion(judgement: "Judgement", against: Path) -> str:
    """The verdict on a whole run in one line."""
    verdicts, rows = judgement.compared, judgement.report.results
    failed, undecided, passed = (
        [verdict for verdict in verdicts if verdict.status == status]
        for status in ("fail", "undecided", "pass")
    )
    blocking = judgement.blocking
    rest = f", {len(undecided)} undecided" if undecided else ""
    if any(verdict.status == "fail" for verdict in blocking):
        line = f"worse than {against}: {_ratio(failed, verdicts)} fail{'s' if len(failed) == 1 else ''}{rest}"
    elif blocking:
        line = f"undecided whether worse than {against}: {_ratio(passed, verdicts)} pass{rest}"
    else:
        line = f"no worse than {against}: {_ratio(passed, verdicts)} pass{rest}"
    missing = [row for row in rows if row.status != "ok"]
    return f"{line}; {_ratio(missing, rows)} artifacts could not be produced" if missing else line


def _ratio(part: "Sequence[object]", of: "Sequence[object]") -> str:
    return f"{len(part)} of {len(of)}"


def _report(
    target: str,
    sets: list[str] | None,
    selection: "Selection",
    data_root: Path | None,
    device_folders: tuple[Path, ...],
    store: Path | None,
) -> "Report":
    """The report of an existing run, or of a recipe run now."""
    from edgeopt.cli.report import read_report
    from edgeopt.commands.judge import part_of

    path = Path(target)
    if os.path.isdir(path) or path.suffix == ".json":
        return part_of(read_report(path), selection)
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.commands.optimize import optimize

    with Progress() as progress:
        return optimize(
            target,
            store=store,
            overrides=sets or (),
            **selection._asdict(),
            data_root=data_root,
            device_folders=device_folders,
            watch=progress,
        )
