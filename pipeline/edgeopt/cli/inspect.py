"""``inspect``: size breakdown and layers of a model file."""

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
    """Show the size breakdown and the layers of a model file; no code in it is run."""
    from edgeopt.formats.source import size_breakdown

    breakdown = size_breakdown(file)
    if as_json:
        typer.echo(breakdown.model_dump_json(indent=2))
    else:
        _show(breakdown)


def _show(breakdown: "SizeBreakdown") -> None:
    from rich.table import Table
    from rich.text import Text

    from edgeopt.cli.screen.tables import console

    out = console()
    table = Table(title=f"{breakdown.file} ({breakdown.format})", title_justify="left")
    for title in ("", "bytes", "share"):
        table.add_column(title, justify="right" if title else "left")
    for part, size in sorted(breakdown.parts.items(), key=lambda entry: -entry[1]):
        table.add_row(Text(part), f"{size:,}", f"{size / max(breakdown.size_bytes, 1):.1%}")
    table.add_section()
    table.add_row("all", f"{breakdown.size_bytes:,}", "")
    out.print(table)
    if breakdown.layers:
        out.print(_layers(breakdown))
    totals = [("parameters", breakdown.parameters), ("MACs", breakdown.macs)]
    if numbers := [f"{number:,} {title}" for title, number in totals if number is not None]:
        out.print(Text(", ".join(numbers)))
    for note in breakdown.notes:
        out.print(Text(f"note: {note}"))


def _layers(breakdown: "SizeBreakdown") -> "object":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(breakdown.layers)} layers", title_justify="left")
    for title in ("layer", "operator", "types", "output"):
        table.add_column(title)
    for title in ("MACs", "parameters"):
        table.add_column(title, justify="right")
    for layer in breakdown.layers:
        name = layer.name if len(layer.name) <= NAME_WIDTH else f"…{layer.name[1 - NAME_WIDTH :]}"
        shape = "×".join("?" if size is None else str(size) for size in layer.shape)
        macs = "?" if layer.macs is None else f"{layer.macs:,}" if layer.macs else ""
        parameters = f"{layer.parameters:,}" if layer.parameters else ""
        table.add_row(Text(name), Text(layer.kind), _types(layer), shape, macs, parameters)
    return table


def _types(layer: "LayerSize") -> str:
    """Types of inputs and output, given once if all are equal."""
    if len(set(layer.types)) <= 1:
        return layer.types[0] if layer.types else ""
    *inputs, output = layer.types
    return f"{', '.join(inputs)} → {output}"
