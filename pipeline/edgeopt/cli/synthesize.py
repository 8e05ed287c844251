"""``synthesize``: calibration data for a model without data."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import DataRoot, Sets, StoreFolder


def synthesize(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_MODEL",
            help="A recipe, which says how samples become inputs, or a Keras model, whose inputs they are.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("calibration.npz"),
    samples: Annotated[int, typer.Option("--samples", min=1, max=100_000, help="How many samples.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of gradient descent.")] = 200,
    bounds: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Least and largest value of a sample, such as 0,255 of images.",
        ),
    ] = None,
    sets: Sets = None,
    data_root: DataRoot = None,
    store: StoreFolder = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Make calibration data from the statistics of a model's batch norms, if there are no samples.

    Samples begin as noise and are changed until every batch norm sees the mean and the deviation that it
    recorded in training. Real samples calibrate better; a few dozen, unlabelled, are enough.

    Exit code 0: written. 2: the recipe or the command is wrong. 3: the model has no batch norm, or cannot be
    loaded.
    """
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.commands.synthesize import synthesize as run

    with Progress(quiet=quiet) as progress:
        written = run(
            recipe,
            out,
            samples=samples,
            steps=steps,
            bounds=_numbers(bounds),
            overrides=sets or (),
            data_root=data_root,
            store=store,
            watch=progress,
        )
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in written.arrays.items())
    typer.echo(f"{written.file}: {shapes}")
    typer.echo(
        f"difference from the statistics of the batch norms: {written.before:.3f}, now {written.after:.3f}"
    )
    if written.unbounded:
        typer.echo(
            "note: the range of the samples is not known: give it with --range, such as 0,255 for images"
        )
    typer.echo(f"in a recipe:\n  data:\n    {written.setting}")


def _numbers(text: str | None) -> tuple[float, float] | None:
    """Two numbers, separated by a comma."""
    from edgeopt.errors import UsageError

    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(f"--range {text!r} is not two numbers", fix="write --range 0,255") from error
    return low, high
