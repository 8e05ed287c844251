"""``doctor``: what can be made of which model here, and what is missing for the rest."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson

if TYPE_CHECKING:
    from edgeopt.commands.doctor import Conversion
    from edgeopt.run.executors.executor import Machine
    from edgeopt.run.measuring.protocol import Probe


def doctor(
    stages: Annotated[
        bool, typer.Option("--stages", help="Also list every stage with its packages.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="EXECUTOR", help="The machines of this executor instead, such as ray."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which models can be converted to what here, and how to install what is missing."""
    import json

    if on is not None:
        _show_machines(on, as_json)
        return

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


def _show_machines(on: str, as_json: bool) -> None:
    """The machines that stages run on, and what they have other than this one."""
    import json

    from edgeopt.commands.doctor import machines
    from edgeopt.config.units import show_bytes

    found = machines(on)
    if as_json:
        content = [each.machine._asdict() | {"differing": each.packages} for each in found]
        typer.echo(json.dumps(content, indent=2))
        return
    for machine, packages in found:
        if not machine.about:
            typer.echo(f"? {machine.name}: it does not answer")
            continue
        probe = machine.about["probe"]
        free, memory = machine.about["free_memory_bytes"], probe["memory_bytes"] or 0
        typer.echo(
            f"{'✗' if packages else '✓'} {machine.name}: {machine.slots:g} stages at a time; "
            f"{probe['cores']} × {probe['cpu']} ({', '.join(probe['cpu_flags'])}); "
            f"{show_bytes(free)} of {show_bytes(memory)} of memory free{_attached(machine, probe)}"
        )
        for package, (there, here) in packages.items():
            typer.echo(f"    {package} {there or 'missing'}, here {here or 'missing'}")


def _attached(machine: "Machine", probe: "Probe") -> str:
    """What only some machines have: devices that a node offers, and GPUs."""
    gpus = [f"GPU {gpu['name']}" for gpu in probe["gpus"]]
    gpus += [f"trains on {machine.gpus} GPU{'s' * (machine.gpus > 1)}"] if machine.gpus else []
    listed = ", ".join([*(f"device {name}" for name in machine.devices), *gpus])
    return f"; {listed}" if listed else ""


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
