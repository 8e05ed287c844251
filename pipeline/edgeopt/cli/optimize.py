"""``optimize`` and ``plan``: run a recipe, show its plan."""

import os
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import (
    AsJson,
    DataRoot,
    DeviceFolders,
    Devices,
    Formats,
    Protocol,
    Sets,
    StoreFolder,
    Variants,
    folders,
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]


def optimize(
    recipe: RecipeName,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the report (default: artifacts/runs/TIME-RECIPE)."),
    ] = None,
    variant: Variants = None,
    format: Formats = None,
    device: Devices = None,
    sets: Sets = None,
    protocol: Protocol = None,
    data_root: DataRoot = None,
    device_folder: DeviceFolders = None,
    store: StoreFolder = None,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Build the rest if some requested artifacts cannot be produced."),
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Build, measure and judge every artifact of a recipe.

    Exit code 0: all gates pass. 1: a gate failed. 2: the recipe or the command is wrong.
    3: something could not run. To resume an interrupted run, repeat the command.
    """
    from edgeopt.cli.screen.github import report_to_github
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.cli.screen.tables import show_report
    from edgeopt.commands.optimize import optimize as run

    with Progress(quiet=quiet) as progress:
        report = run(
            recipe,
            out=out,
            store=store,
            overrides=[*([f"latency={{protocol: {protocol}}}"] if protocol else ()), *(sets or ())],
            variants=variant or (),
            formats=format or (),
            devices=device or (),
            data_root=data_root,
            device_folders=folders(device_folder),
            keep_going=keep_going,
            watch=progress,
        )
    assert report.folder is not None  # set by optimize
    progress.write_log(report.folder / "run.log")
    if as_json:
        typer.echo((report.folder / "report.json").read_bytes(), nl=False)
    else:
        show_report(report)
        typer.echo(f"report: {report.folder / 'report.html'}")
    report_to_github(report)
    raise typer.Exit(report.exit_code)


def plan(
    recipe: RecipeName,
    variant: Variants = None,
    format: Formats = None,
    device: Devices = None,
    sets: Sets = None,
    data_root: DataRoot = None,
    device_folder: DeviceFolders = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show what optimize would do: every stage, cached results, and artifacts that cannot be produced."""
    from edgeopt.cli.screen.tables import plan_as_json, show_plan
    from edgeopt.commands.plan import plan as make_plan
    from edgeopt.config import absent
    from edgeopt.run.build import look_up
    from edgeopt.run.preflight import check_data
    from edgeopt.run.store import Store, store_folder

    planned = make_plan(
        recipe,
        overrides=sets or (),
        variants=variant or (),
        formats=format or (),
        devices=device or (),
        data_root=data_root,
        device_folders=folders(device_folder),
    )
    if absent.installed():
        check_data(planned)
    else:
        typer.echo(f"the data is not checked: {absent.missing('numpy')}", err=True)
    place = store_folder(store)
    builds = look_up(planned, Store(place)) if os.path.isdir(place) else []
    if as_json:
        typer.echo(plan_as_json(planned, builds))
    else:
        show_plan(planned, builds)
    raise typer.Exit(2 if planned.impossible else 0)
