"""``init``: a starter recipe for a model file."""

import os
from pathlib import Path
from typing import Annotated

import typer


def init(
    model: Annotated[
        Path,
        typer.Argument(help=".keras, .h5, SavedModel folder, .pt2, TorchScript, .onnx, or a checkpoint."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Inspect a model file and write a commented starter recipe for it."""
    from edgeopt.config.files import writing
    from edgeopt.errors import UsageError
    from edgeopt.recipe.starter import starter_recipe

    text = starter_recipe(model, folder=out.parent)
    if os.path.lexists(out) and not force:
        raise UsageError(
            f"{out} already exists", fix="choose another with --out, or overwrite it with --force"
        )
    with writing(out, "choose another with --out"):
        out.write_text(text, "utf-8")
    typer.echo(f"wrote {out}; fill in the data, then: edgeopt plan {out}")
