"""``parity``: outputs of one file and the same inputs on several devices."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson, DeviceFolders

NAME_LENGTH = 40


def parity(
    file: Annotated[Path, typer.Argument(help="A .tflite, .onnx, .ptl or .pte file.")],
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="NAME", help="A device; the others are compared with the first."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="An .npz file with inputs 'x' [default: random inputs].")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many samples of the data.", min=1)] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Exit with 1 if outputs differ by more quantization steps.", min=0)
    ] = None,
    max_flips: Annotated[
        int | None, typer.Option(help="Exit with 1 if the top-1 class changes for more samples.", min=0)
    ] = None,
    folder: DeviceFolders = None,
    listed: Annotated[str | None, typer.Option("--devices", hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the outputs of several devices, and find the first layer that differs."""
    from rich.table import Table
    from rich.text import Text

    from edgeopt.cli.options import folders
    from edgeopt.cli.screen.tables import console
    from edgeopt.commands.parity import parity as run
    from edgeopt.errors import UsageError
    from edgeopt.evaluation.datasets.npz import Npz

    if data is not None and not data.is_file():
        raise UsageError(f"no such file: {data}")
    # --devices host,cortex-m is the former spelling.
    names = [*(device or ()), *(name.strip() for name in (listed or "").split(",") if name.strip())]
    dataset = None if data is None else Npz(path=data, label=None, limit=limit)
    compared = run(file, names, device_folders=folders(folder), dataset=dataset)
    others = compared.devices[1:]
    if as_json:
        typer.echo(compared.model_dump_json(indent=2))
    else:
        kind = "random inputs" if compared.random_inputs else "samples"
        title = f"{compared.file} against {compared.devices[0].device}, {compared.samples} {kind}"
        table = Table(title=title, title_justify="left")
        for column in ("device", "runtime"):
            table.add_column(column)
        for column in ("differing", "max steps", "max error", "flips"):
            table.add_column(column, justify="right")
        table.add_column("first layer that differs")
        for row in others:
            layer = row.layer_note
            if row.layer is not None:
                steps = row.layer.max_steps
                error = f"{steps} steps" if steps is not None else f"{row.layer.max_error:.2g}"
                # Fused operators are named by a list of layers; --json contains all of it.
                name = row.layer.name.split(";")[0][-NAME_LENGTH:]
                layer = f"{row.layer.index}: {row.layer.operator} {name} ({error})"
            cells = [row.differing, row.max_steps, row.max_error, row.flips]
            shown = [_number(cell) for cell in cells]
            shown[1] += f" before {row.steps_before}" if row.steps_before else ""
            table.add_row(row.device, row.runtime, *shown, Text(row.reason or layer))
        console().print(table)
    if any(row.status != "ok" for row in others):
        raise typer.Exit(3)
    for maximum, name in ((max_steps, "max_steps"), (max_flips, "flips")):
        if maximum is None:
            continue
        for row in others:
            value = getattr(row, name)
            if value is None or value > maximum:
                typer.echo(f"{row.device}: {name} is {value}, the limit is {maximum}", err=True)
                raise typer.Exit(1)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
