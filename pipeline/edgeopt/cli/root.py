"""The commands and groups of the command line."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from edgeopt.cli import (
    artifacts,
    check,
    ci,
    compare,
    devices,
    diagnose,
    doctor,
    init,
    inspect,
    lint,
    node,
    optimize,
    parity,
    profile,
    report,
    schema,
    search,
    slim,
    store,
    synthesize,
)
from edgeopt.cli.options import Command, no_exit


class Commands(TyperGroup):
    """All commands; an exit of user code in one of them does not decide the exit code."""

    def invoke(self, ctx: Any) -> Any:
        with no_exit():
            return super().invoke(ctx)


app = typer.Typer(
    name="edgeopt",
    cls=Commands,
    help="Make trained Keras and PyTorch models smaller and faster, and prove that they still work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "optimize": optimize.optimize,
    "plan": optimize.plan,
    "profile": profile.profile,
    "init": init.init,
    "report": report.report,
    "doctor": doctor.doctor,
    "schema": schema.schema,
    "slim": slim.slim,
    "inspect": inspect.inspect,
    "lint": lint.lint,
    "parity": parity.parity,
    "diagnose": diagnose.diagnose,
    "search": search.search,
    "synthesize": synthesize.synthesize,
    "check": check.check,
    "compare": compare.compare,
    "node": node.node,
}
for name, command in COMMANDS.items():
    app.command(name, cls=Command)(command)
app.command("ci", cls=ci.Expanding)(ci.ci)
app.add_typer(check.app, name="baseline")
app.add_typer(devices.app, name="devices")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(store.app, name="store")


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("edgeopt"))
        raise typer.Exit


# Typer accepts an option without a command only if the root callback may run alone.
app.info.invoke_without_command = True
