"""``doctor``: what can be made of which model here, and what is missing for the rest."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson

if TYPE_CHECKING:
    from edgeopt.commands.doctor import Conversion


def doctor(
    stages: Annotated[
        bool, typer.Option("--stages", help="Also list every stage with its packages.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show which models can be converted to what here, and how to install what is missing."""
    import json

    from edgeopt.commands.doctor import TOOLS, conversions, machine
    from edgeopt.config import registry
    from edgeopt.config.units import show_bytes
    from edgeopt.errors import install
    from edgeopt.plugin import Stage

    here, found = machine(), list(conversions())
    known = registry.plugins(Stage)
    if as_json:
        content = {
            "python": here.probe["python"],
            "machine": here.probe,
            "free_bytes": here.free_bytes,
            "tools": here.tools,
            "conversions": [each._asdict() for each in found],
            "stages": {
                name: {"versions": stage.versions(), "missing": stage.missing(), "extra": stage.extra}
                for name, stage in known.items()
            },
        }
        typer.echo(json.dumps(content, indent=2))
        return
    flags = ", ".join(here.probe["cpu_flags"]) or "no vector extensions that matter"
    memory = here.probe["memory_bytes"]
    typer.echo(f"Python {here.probe['python']} on {here.probe['os']}")
    typer.echo(f"{here.probe['cores']} × {here.probe['cpu']} ({flags}), {show_bytes(memory or 0)} of memory")
    typer.echo(f"{show_bytes(here.free_bytes)} free on the disk of this folder\n")
    if here.probe["numpy"] is None:
        typer.echo(f"✗ numpy missing, without which nothing is measured here: {install('numerics')}")
    _show(found)
    for fix in dict.fromkeys(each.fix for each in found if each.fix):
        packages = sorted({package for each in found if each.fix == fix for package in each.missing})
        typer.echo(f"✗ {', '.join(packages)} missing: {fix}")
    for name, present in here.tools.items():
        purpose, fix = TOOLS[name]
        typer.echo(f"{'✓' if present else '✗'} {name}, for {purpose}{'' if present else f': {fix}'}")
    for name, stage in known.items() if stages else ():
        if missing := stage.missing():
            fix = install(stage.extra) if stage.extra else f"pip install {' '.join(missing)}"
            typer.echo(f"✗ {name}: needs {', '.join(missing)}: {fix}")
        else:
            installed = ", ".join(f"{package} {version}" for package, version in stage.versions().items())
            typer.echo(f"✓ {name}: {installed or 'no packages needed'}")


def _show(found: list["Conversion"]) -> None:
    """A table of source models against formats."""
    from rich.table import Table

    from edgeopt.cli.screen.tables import console
    from edgeopt.formats.known import formats as known

    formats = list(dict.fromkeys(each.format for each in found))
    table = Table(title="can be made here", title_justify="left")
    for title in ("from", *formats):
        table.add_column(title)
    for source in dict.fromkeys(each.source for each in found):
        cells = []
        for target in formats:
            yes = [
                each.scheme
                for each in found
                if (each.source, each.format) == (source, target) and each.possible
            ]
            cells.append(" and ".join(yes) or "–")
        table.add_row(re.sub("^an? ", "", known()[source].title), *cells)
    console().print(table)
