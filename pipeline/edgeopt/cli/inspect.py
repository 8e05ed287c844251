"""``inspect``: what a model file is made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson

if TYPE_CHECKING:
    from edgeopt.plugin import LayerSize, SizeBreakdown

NAME_WIDTH = 40


def inspect(
    file: Annotated[Path, typer.Argument(help="A model file, or a SavedModel folder.")],
    as_json: AsJson = False,
) -> None:
    """Show where the bytes of a model file go, and what its layers are; nothing in it is run."""
    from edgeopt.formats.source import size_breakdown

    found = size_breakdown(file)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found)


def _show(found: "SizeBreakdown") -> None:
    from rich.table import Table
    from rich.text import Text

    from edgeopt.cli.screen.tables import console

    out = console()
    table = Table(title=f"{found.file} ({found.format})", title_justify="left")
    for title in ("", "bytes", "share"):
        table.add_column(title, justify="right" if title else "left")
    for part, size in sorted(found.parts.items(), key=lambda entry: -entry[1]):
        table.add_row(Text(part), f"{size:,}", f"{size / max(found.size_bytes, 1):.1%}")
    table.add_section()
    table.add_row("all", f"{found.size_bytes:,}", "")
    out.print(table)
    if found.layers:
        out.print(_layers(found))
    told = [("parameters", found.parameters), ("MACs", found.macs)]
    if numbers := [f"{number:,} {what}" for what, number in told if number is not None]:
        out.print(Text(", ".join(numbers)))
    for note in found.notes:
        out.print(Text(f"note: {note}"))


def _layers(found: "SizeBreakdown") -> "object":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(found.layers)} layers", title_justify="left")
    for title in ("layer", "operator", "types", "output"):
        table.add_column(title)
    for title in ("MACs", "parameters"):
        table.add_column(title, justify="right")
    for layer in found.layers:
        name = layer.name if len(layer.name) <= NAME_WIDTH else f"…{layer.name[1 - NAME_WIDTH :]}"
        shape = "×".join("?" if size is None else str(size) for size in layer.shape)
        macs = "?" if layer.macs is None else f"{layer.macs:,}" if layer.macs else ""
        parameters = f"{layer.parameters:,}" if layer.parameters else ""
        table.add_row(Text(name), Text(layer.kind), _types(layer), shape, macs, parameters)
    return table


def _types(layer: "LayerSize") -> str:
    """Inputs and output, told once where all are the same."""
    if len(set(layer.types)) <= 1:
        return layer.types[0] if layer.types else ""
    *inputs, output = layer.types
    return f"{', '.join(inputs)} → {output}"
