"""The command line: options, tables, progress, exit codes. The only package that prints or exits.

stdout carries the result, stderr the progress. Heavy modules are imported inside the commands, to keep
``--help`` fast, and the commands inside ``main``, which handles signals first.
"""

import contextlib
import errno
import gc
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgeopt.cli.process import interruption, streams
from edgeopt.errors import CannotRunError, EdgeoptError

if TYPE_CHECKING:
    from edgeopt.cli.root import app

__all__ = ["app", "main"]

BUG = 70
ENVIRONMENT = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EPIPE", "ESTALE"),
        *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ENAMETOOLONG", "ELOOP"),
    )
)
"""Failures of the operating system that are no bug of the program."""


def __getattr__(name: str) -> Any:
    if name == "app":
        from edgeopt.cli.root import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> NoReturn:
    """Run the command line; every failure ends in one message and its exit code.

    The process is expected to end now: later signals are ignored.
    """
    # Imports allocate objects that stay: collecting garbage among them takes 0.1 s of each command.
    gc.set_threshold(500_000)
    streams.open_all()
    try:
        try:
            interruption.listen()
            code = _run()
            sys.stdout.flush()
        finally:
            interruption.stop_listening()
    except BaseException as error:  # noqa: BLE001 - also a signal between these statements
        code = _explain(error)
    if code == interruption.INTERRUPTED or interruption.happened():
        code = interruption.INTERRUPTED
        _say(interruption.message())
    interruption.finish()
    sys.exit(code)


def _run() -> int:
    from edgeopt.config import absent
    from edgeopt.config.scratch import temporary_files
    from edgeopt.config.withheld import withheld

    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(withheld())
        with contextlib.suppress(OSError):  # few commands need temporary files; these report it
            cleanup.enter_context(temporary_files())
        try:
            from edgeopt.cli.root import app

            absent.stand_in()
            app()
        except BaseException as error:  # noqa: BLE001 - also an exit or a signal
            return _explain(error)
        finally:
            interruption.stop_listening()  # nothing interrupts the clean-up
    return 0


def _explain(error: BaseException) -> int:
    """Print the message of an exception that ends the command; returns the exit code."""
    if isinstance(error, KeyboardInterrupt) or interruption.happened():
        return interruption.INTERRUPTED
    if isinstance(error, SystemExit):
        cause = error.__context__ and (error.__context__.__cause__ or error.__context__)
        if isinstance(cause, OSError | EOFError):
            return _explain(cause)  # typer ends with 1 after these, which is the code of a failed check
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
    if isinstance(error, EdgeoptError):
        _say(f"{_red('error:')} {error}")
        if os.environ.get("GITHUB_ACTIONS") == "true":
            from edgeopt.cli.screen.github import failure_to_github

            failure_to_github(error)
        return error.exit_code
    if isinstance(error, OSError) and (error.errno is None or error.errno in ENVIRONMENT):
        return _explain(_system_failure(error))
    return _report_bug(error)


def _system_failure(error: OSError) -> CannotRunError:
    """A failed operation of the system; without a file name, it was on an open temporary file."""
    from edgeopt.config.scratch import lasting_temporary_folder

    if error.filename is not None:
        return CannotRunError(f"{error.filename}: {error.strerror}", fix="check the disk and its permissions")
    return CannotRunError(
        f"cannot write temporary files in {lasting_temporary_folder()}: {error.strerror or error}",
        fix="free space there, or set TMPDIR to another folder",
    )


def _report_bug(error: BaseException) -> int:
    from edgeopt.config.scratch import lasting_temporary_folder

    _say(f"{_red('bug:')} {type(error).__name__}: {error}")
    try:
        log = Path(tempfile.mkdtemp(prefix="edgeopt-", dir=lasting_temporary_folder())) / "traceback.log"
        log.write_text("".join(traceback.format_exception(error)), "utf-8", "backslashreplace")
    except OSError as unwritten:
        _say(f"  please report it; the traceback could not be written: {unwritten.strerror}")
    else:
        _say(f"  please report it with {log}")
    return BUG


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _red(text: str) -> str:
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        return f"\033[1;31m{text}\033[0m"
    return text
