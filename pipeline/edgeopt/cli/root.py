"""The commands and groups of the command line."""

from typing import Any

import typer
from typer.core import TyperGroup

from edgeopt.cli import (
    artifacts,
    check,
    devices,
    diagnose,
    doctor,
    init,
    inspect,
    lint,
    optimize,
    parity,
    profile,
    schema,
    slim,
)
from edgeopt.cli.options import no_exit


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
app.command("optimize")(optimize.optimize)
app.command("plan")(optimize.plan)
app.command("profile")(profile.profile)
app.command("init")(init.init)
app.command("report")(optimize.report)
app.command("doctor")(doctor.doctor)
app.command("schema")(schema.schema)
app.command("slim")(slim.slim)
app.command("inspect")(inspect.inspect)
app.command("lint")(lint.lint)
app.command("parity")(parity.parity)
app.command("diagnose")(diagnose.diagnose)
app.command("check")(check.check)
app.command("compare")(check.compare)
app.add_typer(check.app, name="baseline")
app.add_typer(devices.app, name="devices")
app.add_typer(artifacts.app, name="artifacts")


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
