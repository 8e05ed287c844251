"""``baseline``, ``check`` and ``compare``: this run against an earlier one, sample by sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson, DataRoot, DeviceFolders, Sets, StoreFolder, folders

if TYPE_CHECKING:
    from edgeopt.results import Report, Verdict

app = typer.Typer(help="A small file of what is good now, to be committed.", no_args_is_help=True)
BASELINE = Path("baseline.json")


@app.command("write")
def write(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its report.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = BASELINE,
) -> None:
    """Keep what a run found out, to be committed and compared with."""
    from edgeopt.cli.optimize import read_report
    from edgeopt.evaluation.baseline import baseline_of, write_baseline

    baseline = baseline_of(read_report(run))
    write_baseline(baseline, out)
    typer.echo(f"{out}: {len(baseline.entries)} artifacts, {out.stat().st_size:,} bytes")


def check(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe, to be carried out, or a run's folder.")
    ],
    against: Annotated[Path, typer.Option("--against", help="The baseline file.")] = BASELINE,
    max_drop: Annotated[float, typer.Option(help="Accuracy that may be lost, as a share.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="How sure a verdict must be.")] = 0.95,
    undecided: Annotated[
        str, typer.Option(help="What it comes to when there are too few samples to tell: fail or pass.")
    ] = "fail",
    max_size_increase: Annotated[float, typer.Option(help="Growth allowed, as a share.")] = 0.02,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option(
            help="Run the baseline's files, from the store, in turns with the new ones: slower by more than "
            "this factor fails. Without it, latency is not judged."
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Make this run the new baseline, and show what changes.")
    ] = False,
    comment: Annotated[
        Path | None, typer.Option(help="Write a Markdown comment for the pull request here.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    sets: Sets = None,
    data_root: DataRoot = None,
    devices: DeviceFolders = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a run is worse than the baseline, and how sure that is.

    Accuracy is compared sample by sample. It fails where it is sure that more than --max-drop is lost, and
    passes where it is sure that no more than that is lost. Anything between is undecided.

    Exit code 0: no worse. 1: worse, or undecided. 2: the baseline does not fit. 3: something could not run.
    """
    import json

    from pydantic import ValidationError

    from edgeopt.cli.screen.github import tell_github
    from edgeopt.cli.screen.tables import show_verdicts
    from edgeopt.errors import UsageError
    from edgeopt.evaluation.baseline import Limits, baseline_of, differences, read_baseline, write_baseline
    from edgeopt.evaluation.baseline import check as held_against
    from edgeopt.reports import comment as comments
    from edgeopt.reports import junit as junits

    try:
        limits = Limits.model_validate(
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
    known = None if update and not against.exists() else read_baseline(against)
    report = _report(target, sets, data_root, folders(devices), store)
    if update:
        fresh = baseline_of(report)
        for line in differences(known, fresh) if known else ["a new baseline"]:
            typer.echo(line)
        write_baseline(fresh, against)
        typer.echo(f"{against} is now this run")
        return
    assert known is not None  # only an update does without one
    verdicts = held_against(report, known, limits)
    if max_latency_ratio is not None:
        from edgeopt.run.rematch import rematch
        from edgeopt.run.store import store_folder

        run = report.folder or (Path(target) if Path(target).is_dir() else Path(target).parent)
        found = rematch(
            report,
            run,
            known,
            store_folder(store),
            max_ratio=max_latency_ratio,
            undecided=undecided,
            device_folders=folders(devices),
        )
        verdicts = [*verdicts, *found.verdicts]
        for line in found.unjudged:
            typer.echo(f"latency not judged: {line}", err=True)
    judged = report.model_copy(update={"gates": tuple(verdicts)})
    for path, text in ((comment, comments.render(report, verdicts)), (junit, junits.render(judged))):
        if path is not None:
            path.write_text(text, "utf-8")
    if as_json:
        typer.echo(json.dumps([verdict.model_dump(mode="json") for verdict in verdicts], indent=2))
    else:
        show_verdicts(verdicts)
    tell_github(judged)
    if not as_json:
        typer.echo(_conclusion(judged, against))
    raise typer.Exit(judged.exit_code)


def _conclusion(judged: "Report", against: Path) -> str:
    """The verdict on a whole run in one line."""
    gates = judged.gates
    failed, undecided, held = (
        [gate for gate in gates if gate.status == status] for status in ("fail", "undecided", "pass")
    )
    blocking = [gate for gate in gates if gate.blocks]
    some = f", {len(undecided)} undecided" if undecided else ""
    if any(gate.status == "fail" for gate in blocking):
        line = f"worse than {against}: {_some(failed, gates)} fail{'s' if len(failed) == 1 else ''}{some}"
    elif blocking:
        line = f"cannot tell whether it is worse than {against}: {_some(held, gates)} hold{some}"
    else:
        line = f"no worse than {against}: {_some(held, gates)} hold{some}"
    broken = [row for row in judged.results if row.status != "ok"]
    return f"{line}; {len(broken)} of {len(judged.results)} artifacts could not be had" if broken else line


def _some(part: "Sequence[Verdict]", of: "Sequence[Verdict]") -> str:
    return f"{len(part)} of {len(of)}"


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run's folder, or its report.json.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="The other one.")],
    confidence: Annotated[float, typer.Option(help="Of the bounds of each drop.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Compare two runs on the same samples: what was lost from the first to the second, and how surely.

    An artifact that RUN_B has not, or that failed there, is shown as failed. Nothing here blocks: the exit
    code is 0 whatever the comparison shows, and 2 where the runs cannot be compared.
    """
    import json

    from edgeopt.cli.optimize import read_report
    from edgeopt.cli.screen.tables import show_verdicts
    from edgeopt.evaluation.baseline import Limits, baseline_of
    from edgeopt.evaluation.baseline import check as held_against

    before, after = read_report(first), read_report(second)
    limits = Limits(
        max_drop=0.0, confidence=confidence, undecided="pass", max_size_increase=1e9, same_passes=True
    )
    found = held_against(after, baseline_of(before), limits)
    verdicts = [verdict for verdict in found if not verdict.gate.startswith("size_bytes ")]
    if as_json:
        typer.echo(json.dumps([verdict.model_dump(mode="json") for verdict in verdicts], indent=2))
    else:
        show_verdicts(verdicts)


def _report(
    target: str,
    sets: list[str] | None,
    data_root: Path | None,
    device_folders: tuple[Path, ...],
    store: Path | None,
) -> "Report":
    """The report of a run that was made, or of one that is made now."""
    from edgeopt.cli.optimize import read_report

    path = Path(target)
    if path.is_dir() or path.suffix == ".json":
        return read_report(path)
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.commands.optimize import optimize

    with Progress() as progress:
        return optimize(
            target,
            store=store,
            overrides=sets or (),
            data_root=data_root,
            device_folders=device_folders,
            watch=progress,
        )
