"""``slim``: lossless size reduction of a model file."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson


def slim(
    file: Annotated[Path, typer.Argument(help="A model file, such as .tflite, from any converter.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model file smaller without changing its computation: outputs stay bit-identical."""
    import json

    from rich.table import Table

    from edgeopt.cli.screen.tables import console
    from edgeopt.commands import slim as command
    from edgeopt.errors import UsageError

    if out.exists() and not force:
        raise UsageError(f"{out} exists", fix="choose another name, or overwrite it with --force")
    if out.is_dir():
        raise UsageError(f"{out} is a folder", fix="give the name of a file")
    if not out.parent.is_dir():
        raise UsageError(f"no such folder: {out.parent}", fix="create it first")
    before, after = command.slim(file, out)
    if as_json:
        sizes = {"before": before.model_dump(mode="json"), "after": after.model_dump(mode="json")}
        typer.echo(json.dumps(sizes, indent=2))
        return
    table = Table(title=f"{file.name} → {out}", title_justify="left")
    table.add_column("")
    for title in ("before", "after", "saved"):
        table.add_column(title, justify="right")
    for part in dict.fromkeys([*before.parts, *after.parts]):
        old, new = before.parts.get(part, 0), after.parts.get(part, 0)
        table.add_row(part, f"{old:,}", f"{new:,}", f"{old - new:,}" if old != new else "")
    table.add_section()
    saved = before.size_bytes - after.size_bytes
    saving = f"{saved:,} ({saved / before.size_bytes:.1%})"
    table.add_row("bytes", f"{before.size_bytes:,}", f"{after.size_bytes:,}", saving)
    console().print(table)
