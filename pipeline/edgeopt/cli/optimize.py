"""``optimize`` and ``plan``: run a recipe, show its plan."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from edgeopt.cli.options import (
    AsJson,
    DataRoot,
    DeviceFolders,
    Devices,
    Formats,
    KeepGoing,
    On,
    Protocol,
    Sets,
    StoreFolder,
    Variants,
    folders,
)

if TYPE_CHECKING:
    from edgeopt.commands.start import Given

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]
RecipeOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_MODEL",
        help="A recipe file, the name of a shipped recipe, or a model: .keras, .h5, SavedModel folder, .pt2, "
        "TorchScript, .onnx, or a checkpoint with --factory.",
    ),
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="For a model: samples, an .npz, .csv or COCO .json file, or a folder of images, masks or "
        "recordings. One is split; of two, one calibrates and the other judges.",
    ),
]
Int8 = Annotated[bool, typer.Option("--int8", help="For a model: make int8 files; needs --data.")]
Goal = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="KIND",
        help="For a model, where it is to run: phone (TFLite, ExecuTorch), pi (TFLite, ONNX), or mcu (int8 "
        "TFLite with integer inputs and outputs, run by TensorFlow Lite Micro if 'edgeopt devices setup "
        "cortex-m' has installed it).",
    ),
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--factory",
        metavar="CODE",
        help="For a checkpoint: what builds its network, such as my_network.py:build or package.module:Net.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", help="Shape of an input, such as 1,3,32,32, if the model file does not declare it."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Plain progress, also of steps that start, in full.")
]


def optimize(
    recipe: RecipeOrModel,
    data: Data = None,
    int8: Int8 = False,
    goal: Goal = None,
    factory: Factory = None,
    shape: Shapes = None,
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
    keep_going: KeepGoing = False,
    on: On = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, as 'edgeopt plan' does.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    verbose: Verbose = False,
) -> None:
    """Build, measure and judge every artifact of a recipe, or of a model.

    For a model, a recipe is written to the folder of the report and run; what cannot be found out about the
    model is an error that names the option to add. Without --data, its outputs are compared on random inputs.

    Exit code 0: all gates pass. 1: a gate failed. 2: the recipe or the command is wrong.
    3: something could not run. To resume an interrupted run, repeat the command.
    """
    from edgeopt.cli.screen.github import report_to_github
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.cli.screen.tables import show_report
    from edgeopt.commands.optimize import run
    from edgeopt.commands.start import Given
    from edgeopt.reports.cards import publishing

    given = Given(
        Path(recipe),
        data=data or (),
        int8=int8,
        goal=goal,
        factory=factory,
        shapes=shapes_of(shape),
        variants=variant or (),
        formats=format or (),
        devices=device or (),
        overrides=[*([f"latency={{protocol: {protocol}}}"] if protocol else ()), *(sets or ())],
    )
    if dry_run:
        _show_plan(given, data_root, device_folder, store, as_json)
    with Progress(quiet=quiet, verbose=verbose) as progress:
        report = run(
            given,
            out=out,
            store=store,
            data_root=data_root,
            device_folders=folders(device_folder),
            keep_going=keep_going,
            on=on,
            watch=progress,
        )
    assert report.folder is not None  # set by optimize
    progress.write_log(report.folder / "run.log")
    if as_json:
        typer.echo((report.folder / "report.json").read_bytes(), nl=False)
    else:
        show_report(report)
        typer.echo(f"report: {report.folder / 'report.html'}")
        if how := publishing(report):
            typer.echo(how)
    report_to_github(report, recipe)
    raise typer.Exit(report.exit_code)


def plan(
    recipe: RecipeOrModel,
    data: Data = None,
    int8: Int8 = False,
    goal: Goal = None,
    factory: Factory = None,
    shape: Shapes = None,
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
    from edgeopt.commands.start import Given

    given = Given(
        Path(recipe),
        data=data or (),
        int8=int8,
        goal=goal,
        factory=factory,
        shapes=shapes_of(shape),
        variants=variant or (),
        formats=format or (),
        devices=device or (),
        overrides=sets or (),
    )
    _show_plan(given, data_root, device_folder, store, as_json)


def _show_plan(
    given: "Given",
    data_root: Path | None,
    device_folder: list[Path] | None,
    store: Path | None,
    as_json: bool,
) -> NoReturn:
    """Show the plan of what is given, and exit."""
    from edgeopt.cli.screen.tables import plan_as_json, show_plan
    from edgeopt.commands.plan import plan_of
    from edgeopt.config import absent
    from edgeopt.run.build import look_up
    from edgeopt.run.preflight import check_data
    from edgeopt.run.store import Store, store_folder

    planned = plan_of(given, data_root=data_root, device_folders=folders(device_folder))
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


def shapes_of(texts: list[str] | None) -> list[tuple[int, ...]]:
    """The shapes that ``--shape`` gives.

    Raises:
        UsageError: one of them is no list of sizes.
    """
    from edgeopt.errors import UsageError
    from edgeopt.model import TensorSpec

    shapes = []
    for text in texts or ():
        try:
            shape = tuple(int(part) for part in text.split(","))
            problem = TensorSpec(name="input", shape=shape, layout=None).problem
        except ValueError as error:
            raise UsageError(
                f"--shape {text!r} is not a list of integers", fix="write it as 1,3,32,32"
            ) from error
        if problem:
            raise UsageError(f"--shape {text}: {problem}")
        shapes.append(shape)
    return shapes
