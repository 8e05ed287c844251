"""``search``: find the best variants of a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.optimize import Data, Factory, Goal, RecipeOrModel, Shapes, shapes_of
from edgeopt.cli.options import (
    AsJson,
    DataRoot,
    DeviceFolders,
    Devices,
    Formats,
    On,
    Sets,
    StoreFolder,
    folders,
)

if TYPE_CHECKING:
    from edgeopt.commands.search import Found
    from edgeopt.results.search import SearchResult, Tried


def search(
    recipe: RecipeOrModel,
    data: Data = None,
    goal: Goal = None,
    factory: Factory = None,
    shape: Shapes = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant", metavar="NAME", help="The variant to search (default: the only one, or best)."
        ),
    ] = None,
    under: Annotated[
        list[str] | None,
        typer.Option("--under", metavar="LIMIT", help="A limit, such as 'top1 max_drop 0.01'; repeatable."),
    ] = None,
    minimize: Annotated[
        list[str] | None,
        typer.Option("--minimize", metavar="NAME", help="A measurement to minimize (default: size_bytes)."),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", metavar="NAME=VALUES", help="What varies, such as 'bits=[4, 8]' (default: all)."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="Most candidates to try (default: 40).")
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="Time limit (default: 2).")] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Candidates to propose and build together (default: 2); more for many nodes.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the results (default: artifacts/searches/RECIPE-VARIANT)."
        ),
    ] = None,
    format: Formats = None,
    device: Devices = None,
    sets: Sets = None,
    data_root: DataRoot = None,
    device_folder: DeviceFolders = None,
    store: StoreFolder = None,
    on: On = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Search for the smallest or fastest variants within limits, and judge them on the evaluation data.

    For a model, a recipe is written to the folder of the results first, as by optimize.

    Exit code 0: the best variant meets its limits. 1: none does, or it fails a gate on the evaluation data.
    2: the recipe or the command is wrong. 3: something could not run. To resume, repeat the command.
    """
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.commands.search import search as run
    from edgeopt.results.search import PAGE, RESULT

    with Progress(quiet=quiet) as progress:
        found = run(
            recipe,
            data=data or (),
            goal=goal,
            factory=factory,
            shapes=shapes_of(shape),
            variant=variant,
            under=under or (),
            minimize=minimize or (),
            over=over or (),
            trials=trials,
            hours=hours,
            batch=batch,
            out=out,
            store=store,
            overrides=sets or (),
            formats=format or (),
            devices=device or (),
            data_root=data_root,
            device_folders=folders(device_folder),
            on=on,
            watch=progress,
        )
    progress.write_log(found.folder / "run.log")
    if as_json:
        typer.echo((found.folder / RESULT).read_bytes(), nl=False)
    else:
        _show(found)
        typer.echo(f"search: {found.folder / PAGE}")
    raise typer.Exit(found.exit_code)


def _show(found: "Found") -> None:
    from rich.table import Table

    from edgeopt.cli.screen.tables import console

    result = found.result
    out = console()
    counts = {
        status: sum(each.status == status for each in result.trials) for status in ("stopped", "failed")
    }
    out.print(
        f"{len(result.trials)} of {result.points:,} points tried ({counts['stopped']} stopped early, "
        f"{counts['failed']} failed): {result.stopped}",
        highlight=False,
    )
    out.print(f"selected on {result.samples} samples: {result.selection}", highlight=False)
    for note in result.notes:
        out.print(note, style="yellow", markup=False, highlight=False)
    if result.closest:
        out.print(f"no variant meets all limits; {result.closest}", markup=False, highlight=False)
        return
    table = Table(title=f"Pareto front: {', '.join(result.minimize)}", title_justify="left")
    for title in ("variant", "format", *result.minimize, f"{result.loss}, selection", "evaluation", "gates"):
        table.add_column(title, justify="left" if title in ("variant", "format", "gates") else "right")
    trials = {each.number: each for each in result.trials}
    for judged in result.judged:
        tried = trials[judged.trial]
        costs = [f"{tried.objectives[name]:,.6g}" for name in result.minimize]
        drop = judged.evaluation.get(result.loss)
        table.add_row(
            judged.variant,
            judged.format,
            *costs,
            _points(tried.objectives[result.loss]),
            "–" if drop is None else _points(drop),
            "pass" if judged.passed else "fail",
        )
    out.print(table)
    _show_best(result, trials)
    out.print(f"recipes: {found.folder / 'front'}", highlight=False, soft_wrap=True)
    for report in found.reports.values():
        assert report.folder is not None  # set by optimize
        out.print(f"report: {report.folder / 'report.html'}", highlight=False, soft_wrap=True)


def _show_best(result: "SearchResult", trials: dict[int, "Tried"]) -> None:
    """The optimism of the selection, and the best variant as text for a recipe."""
    import yaml

    best = result.judged[0]
    for name, value in best.optimism.items():
        typer.echo(
            f"{best.variant}: {name} {_points(best.selection[name])} on the selection data, "
            f"{_points(best.evaluation[name])} on the evaluation data: {_points(value)} more"
        )
    text = yaml.safe_dump({best.variant: trials[best.trial].options}, sort_keys=False, width=100)
    typer.echo("optimize:\n" + "".join(f"  {line}\n" for line in text.splitlines()), nl=False)


def _points(fraction: float) -> str:
    return f"{fraction * 100:+.2f} pt"
