"""``optimize``, ``plan`` and ``report``: the main job, what it would do, and what it found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson, DataRoot, DeviceFolders, Protocol, Sets, StoreFolder, folders

if TYPE_CHECKING:
    from edgeopt.results import Report

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]


def optimize(
    recipe: RecipeName,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the report (default: artifacts/runs/TIME-RECIPE)."),
    ] = None,
    sets: Sets = None,
    protocol: Protocol = None,
    data_root: DataRoot = None,
    devices: DeviceFolders = None,
    store: StoreFolder = None,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Build what can be had when the recipe also asks for what cannot."),
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Build, measure and judge everything a recipe asks for.

    Exit code 0: all gates pass. 1: a gate failed. 2: the recipe or the command is wrong.
    3: something could not run. Interrupted work is resumed by running the same command again.
    """
    from edgeopt.cli.screen.github import tell_github
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.cli.screen.tables import show_report
    from edgeopt.commands.optimize import optimize as run

    with Progress(quiet=quiet) as progress:
        report = run(
            recipe,
            out=out,
            store=store,
            overrides=[*([f"latency={{protocol: {protocol}}}"] if protocol else ()), *(sets or ())],
            data_root=data_root,
            device_folders=folders(devices),
            keep_going=keep_going,
            watch=progress,
        )
    assert report.folder is not None  # optimize has written it
    progress.write_log(report.folder / "run.log")
    if as_json:
        typer.echo((report.folder / "report.json").read_text("utf-8"), nl=False)
    else:
        show_report(report)
        typer.echo(f"report: {report.folder / 'report.html'}")
    tell_github(report)
    raise typer.Exit(report.exit_code)


def plan(
    recipe: RecipeName,
    sets: Sets = None,
    data_root: DataRoot = None,
    devices: DeviceFolders = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show what optimize would do: every stage, what is cached, what cannot be had and why."""
    from edgeopt.cli.screen.tables import plan_as_json, show_plan
    from edgeopt.commands.optimize import plan as make
    from edgeopt.run.build import look_up
    from edgeopt.run.preflight import check_data
    from edgeopt.run.store import Store, store_folder

    made = make(recipe, overrides=sets or (), data_root=data_root, device_folders=folders(devices))
    check_data(made)
    place = store_folder(store)
    builds = look_up(made, Store(place)) if place.exists() else []
    if as_json:
        typer.echo(plan_as_json(made, builds))
    else:
        show_plan(made, builds)
    raise typer.Exit(2 if made.impossible else 0)


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its report.json.")] = Path(
        "artifacts/runs/latest"
    ),
    format: Annotated[str, typer.Option("--format", help="table, md, html, json, junit or csv.")] = "table",
    index: Annotated[
        Path | None,
        typer.Option("--index", help="Instead, write a page over time of all runs in this folder."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where that page goes (default: index.html there).")
    ] = None,
) -> None:
    """Show the report of an earlier run again, or make the page of all runs of a folder.

    'edgeopt optimize' keeps artifacts/runs/index.html up to date by itself; --index is for runs that were
    put elsewhere, or came from CI.
    """
    from edgeopt.cli.screen.tables import show_report
    from edgeopt.errors import UsageError
    from edgeopt.reports import RENDERERS

    if index is not None:
        from edgeopt.reports.index import write_index

        typer.echo(write_index(index, out))
        return
    if out is not None:
        raise UsageError(
            "--out belongs to --index", fix="redirect stdout: edgeopt report RUN --format html > FILE"
        )
    found = read_report(run)
    if format == "table":
        show_report(found)
    elif format in RENDERERS:
        typer.echo(RENDERERS[format](found), nl=False)
    else:
        raise UsageError(f"no report format {format!r}", fix=f"choose table, {', '.join(RENDERERS)}")


def read_report(run: Path) -> "Report":
    """A report from a run's folder or file.

    Raises:
        UsageError: there is none, or it is not a report of this version.
    """
    from pydantic import ValidationError

    from edgeopt.errors import UsageError
    from edgeopt.results import Report

    path = run / "report.json" if run.is_dir() else run
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"no report in {run}: {error.strerror}", fix="give the folder of a run") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"{path} is not a complete report: {'.'.join(map(str, first['loc']))} {first['msg'].lower()}",
            fix="make it again with edgeopt optimize",
        ) from error
