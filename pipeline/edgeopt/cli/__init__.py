"""The command line: options, tables, progress, exit codes. The only package that prints or exits.

stdout carries the result, stderr the progress. Heavy modules are imported inside the commands, to keep
``--help`` fast.
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path

import typer

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
from edgeopt.cli import (
    releases as releases,  # registers its commands with those of artifacts
)
from edgeopt.errors import EdgeoptError

BUG = 70
INTERRUPTED = 130

app = typer.Typer(
    name="edgeopt",
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


def main() -> None:
    """Run the command line; every failure ends in one message and its exit code."""
    try:
        app()
    except EdgeoptError as error:
        typer.echo(f"{_red('error:')} {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted; finished work is in the store: repeat the command to resume", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader closed the pipe, as in `edgeopt plan | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a bug: the traceback goes to a file, never to the screen
        log = Path(tempfile.mkdtemp(prefix="edgeopt-")) / "traceback.log"
        log.write_text("".join(traceback.format_exception(error)), "utf-8")
        typer.echo(f"{_red('bug:')} {type(error).__name__}: {error}\n  please report it with {log}", err=True)
        sys.exit(BUG)


def _red(text: str) -> str:
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        return typer.style(text, fg=typer.colors.RED, bold=True)
    return text
