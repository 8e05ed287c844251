"""``slim``: the same TFLite model in fewer bytes."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson


def slim(
    file: Annotated[Path, typer.Argument(help="A .tflite file, whoever made it.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write the smaller file.")],
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a TFLite file smaller without changing what it computes: outputs stay bit-identical."""
    import json
    import os
    import tempfile

    from rich.table import Table

    from edgeopt.cli.screen.tables import console
    from edgeopt.errors import UsageError
    from edgeopt.formats.tflite.files import breakdown as ledger_tflite
    from edgeopt.formats.tflite.files.model_file import IDENTIFIER, load, parse
    from edgeopt.formats.tflite.files.slimming import slimmed

    if not file.is_file():
        raise UsageError(f"no such file: {file}", fix="check the path")
    if out.exists() and not force:
        raise UsageError(f"{out} exists", fix="choose another name, or replace it with --force")
    if out.is_dir():
        raise UsageError(f"{out} is a folder", fix="name the file to write")
    if not out.parent.is_dir():
        raise UsageError(f"no such folder: {out.parent}", fix="make it first")
    with file.open("rb") as opened:
        if opened.read(8)[4:] != IDENTIFIER:
            raise UsageError(f"{file} is not a TFLite model", fix="only .tflite files can be slimmed")
    read = load(file)
    result = slimmed(read)
    before, after = ledger_tflite.ledger(read), ledger_tflite.ledger(parse(result, out.name))
    try:
        # A reader of the new file never sees a half of it.
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as scratch:
            try:
                scratch.write(result)
                scratch.flush()
                os.chmod(scratch.name, 0o666 & ~_umask())
                os.replace(scratch.name, out)
            finally:
                Path(scratch.name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", fix="choose another place") from error
    if as_json:
        told = {"before": before.model_dump(mode="json"), "after": after.model_dump(mode="json")}
        typer.echo(json.dumps(told, indent=2))
        return
    table = Table(title=f"{file.name} → {out}", title_justify="left")
    table.add_column("")
    for title in ("before", "after", "saved"):
        table.add_column(title, justify="right")
    for part in [part for part in ledger_tflite.PARTS if part in before.parts or part in after.parts]:
        old, new = before.parts.get(part, 0), after.parts.get(part, 0)
        table.add_row(part, f"{old:,}", f"{new:,}", f"{old - new:,}" if old != new else "")
    table.add_section()
    saved = before.size_bytes - after.size_bytes
    share = f"{saved:,} ({saved / before.size_bytes:.1%})"
    table.add_row("bytes", f"{before.size_bytes:,}", f"{after.size_bytes:,}", share)
    console().print(table)


def _umask() -> int:
    """The mask that new files get; it can only be read by setting it."""
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
