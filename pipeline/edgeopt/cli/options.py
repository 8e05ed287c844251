"""Options that several commands share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, such as formats=tflite."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Folder for relative paths that are not found beside the recipe.",
        envvar="EDGEOPT_DATA",
    ),
]
DeviceFolders = Annotated[
    list[Path] | None,
    typer.Option("--devices", help="Folder with your own device files; they may replace shipped ones."),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Folder of cached results (default: artifacts/store).", envvar="EDGEOPT_STORE"
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="Timing protocol: mlperf-tiny (at least 10 s, five repetitions, median).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def folders(given: list[Path] | None) -> tuple[Path, ...]:
    """The given folders of device files; ``./devices`` is searched without being given.

    Raises:
        UsageError: one of them does not exist.
    """
    from edgeopt.errors import UsageError

    for folder in given or ():
        if not os.path.isdir(folder):
            raise UsageError(f"--devices {folder}: no such folder", fix="give a folder of device files")
    return tuple(given or ())


@contextmanager
def no_exit() -> Iterator[None]:
    """Turn an exit of user code, which would decide the exit code of the command, into an error.

    Raises:
        CannotRunError: user code that runs in this process, such as a validator of a plugin, exited.
    """
    from edgeopt.config.text import reason_of
    from edgeopt.errors import CannotRunError

    try:
        yield
    except (SystemExit, GeneratorExit) as error:
        raise CannotRunError(
            f"code of the recipe ended the command: {reason_of(error)}", fix="raise an exception instead"
        ) from error
