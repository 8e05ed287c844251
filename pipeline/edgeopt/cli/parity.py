"""``parity``: the same file and inputs on several devices."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson

NAME_LENGTH = 40


def parity(
    file: Annotated[Path, typer.Argument(help="A .tflite, .onnx, .ptl or .pte file.")],
    devices: Annotated[
        str,
        typer.Option(
            "--devices", help="Devices, with commas; the first is what the others are held against."
        ),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="An .npz file with inputs 'x' [default: random inputs].")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first samples of the data.", min=1)] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Exit with 1 if outputs differ by more quantized units.", min=0)
    ] = None,
    max_flips: Annotated[
        int | None, typer.Option(help="Exit with 1 if more samples change their largest output.", min=0)
    ] = None,
    folder: Annotated[
        list[Path] | None, typer.Option("--device-folder", help="A folder with device files of your own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell how far the outputs of several devices are apart, and which layer differs first."""
    from rich.table import Table
    from rich.text import Text

    from edgeopt.cli.options import folders
    from edgeopt.cli.screen.tables import console
    from edgeopt.commands.parity import parity as run
    from edgeopt.errors import UsageError
    from edgeopt.evaluation.datasets.npz import Npz

    if data is not None and not data.is_file():
        raise UsageError(f"no such file: {data}")
    names = [name.strip() for name in devices.split(",") if name.strip()]
    dataset = None if data is None else Npz(path=data, label=None, limit=limit)
    found = run(file, names, device_folders=folders(folder), dataset=dataset)
    others = found.devices[1:]
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        kind = "random inputs" if found.random_inputs else "samples"
        title = f"{found.file} against {found.devices[0].device}, {found.samples} {kind}"
        table = Table(title=title, title_justify="left")
        for column in ("device", "runtime"):
            table.add_column(column)
        for column in ("differing", "max steps", "max error", "flips"):
            table.add_column(column, justify="right")
        table.add_column("first layer that differs")
        for row in others:
            layer = row.layer_note
            if row.layer is not None:
                apart = row.layer.max_steps
                told = f"{apart} steps" if apart is not None else f"{row.layer.max_error:.2g}"
                # Names of fused operators are lists; the whole is in --json.
                name = row.layer.name.split(";")[0][-NAME_LENGTH:]
                layer = f"{row.layer.index}: {row.layer.operator} {name} ({told})"
            cells = [row.differing, row.max_steps, row.max_error, row.flips]
            shown = [_number(cell) for cell in cells]
            table.add_row(row.device, row.runtime, *shown, Text(row.reason or layer))
        console().print(table)
    if any(row.status != "ok" for row in others):
        raise typer.Exit(3)
    for limit_of, name in ((max_steps, "max_steps"), (max_flips, "flips")):
        if limit_of is None:
            continue
        for row in others:
            value = getattr(row, name)
            if value is None or value > limit_of:
                typer.echo(f"{row.device}: {name} is {value}, allowed are {limit_of}", err=True)
                raise typer.Exit(1)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
