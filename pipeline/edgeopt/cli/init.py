"""``init``: a starter recipe for a model file."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    model: Annotated[
        Path, typer.Argument(help=".keras, .h5, SavedModel folder, .pt2, TorchScript, or a checkpoint.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Inspect a model file and write a commented starter recipe for it."""
    from edgeopt.errors import UsageError
    from edgeopt.recipe.starter import starter_recipe

    text = starter_recipe(model, folder=out.parent)
    if out.exists() and not force:
        raise UsageError(
            f"{out} already exists", fix="choose another with --out, or overwrite it with --force"
        )
    try:
        out.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    typer.echo(f"wrote {out}; fill in the data, then: edgeopt plan {out}")
