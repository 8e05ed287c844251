"""``init``: a starter recipe for a model file."""

import os
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.optimize import Data, Factory, Goal, Int8, Shapes, shapes_of
from edgeopt.cli.options import DataRoot, DeviceFolders, Devices, Formats, Sets, Variants, folders


def init(
    model: Annotated[
        Path,
        typer.Argument(help=".keras, .h5, SavedModel folder, .pt2, TorchScript, .onnx, or a checkpoint."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
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
) -> None:
    """Inspect a model and write a commented starter recipe for it.

    With --data, it is the recipe that 'edgeopt optimize MODEL --data' runs; without, the lines to fill in are
    marked CHANGE. The model is run once, to know its outputs.
    """
    from edgeopt.commands.init import starter
    from edgeopt.commands.start import Given
    from edgeopt.config.files import writing
    from edgeopt.errors import UsageError

    if os.path.lexists(out) and not force:
        raise UsageError(
            f"{out} already exists", fix="choose another with --out, or overwrite it with --force"
        )
    shapes = shapes_of(shape)
    given = Given(
        model, data or (), int8, goal, factory, shapes, variant or (), format or (), device or (), sets or ()
    )
    text = starter(given, out, data_root=data_root, device_folders=folders(device_folder))
    with writing(out, "choose another with --out"):
        out.write_text(text, "utf-8")
    todo = "fill in the lines marked CHANGE, then" if "CHANGE" in text else "then"
    typer.echo(f"wrote {out}; {todo}: edgeopt plan {out}")
