"""Options that several commands share, and the former spellings of some of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


def device_names(incomplete: str) -> list[str]:
    """The devices whose names begin so, for the completion of the shell."""
    from edgeopt.devices.device import known_devices

    return [name for name in known_devices() if name.startswith(incomplete)]


def format_names(incomplete: str) -> list[str]:
    """The formats whose names begin so."""
    from edgeopt.formats.known import artifact_formats

    return [name for name in artifact_formats() if name.startswith(incomplete)]


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
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="NAME", help="Only this variant of the recipe, and float."),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="This format instead of the recipe's.",
        autocompletion=format_names,
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="This device instead of the recipe's; see 'edgeopt devices list'.",
        autocompletion=device_names,
    ),
]
DeviceFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--device-folder",
        metavar="DIR",
        help="Folder with your own device files; they may replace shipped ones.",
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Folder or URL of cached results (default: artifacts/store).",
        envvar="EDGEOPT_STORE",
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="EXECUTOR",
        help="Where stages run: local, ray or ray:HOST:PORT (default: local); see the page on clusters.",
        envvar="EDGEOPT_ON",
    ),
]
KeepGoing = Annotated[
    bool,
    typer.Option("--keep-going", help="Build the rest if some requested artifacts cannot be produced."),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="Timing protocol: mlperf-tiny (at least 10 s, five repetitions, median).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
FOLDER, FORMER_FOLDER = "--device-folder", "--devices"


class Command(TyperCommand):
    """A command that accepts ``--devices DIR``, the former spelling of ``--device-folder DIR``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = {name for option in self.params for name in option.opts}
        if FOLDER in names and FORMER_FOLDER not in names:
            args = [
                FOLDER + each.removeprefix(FORMER_FOLDER) if each.partition("=")[0] == FORMER_FOLDER else each
                for each in args
            ]
        return super().parse_args(ctx, args)


def folders(given: list[Path] | None) -> tuple[Path, ...]:
    """The given folders of device files; ``./devices`` is searched without being given.

    Raises:
        UsageError: one of them does not exist.
    """
    from edgeopt.devices.device import known_devices
    from edgeopt.errors import UsageError

    for folder in given or ():
        if not os.path.isdir(folder):
            is_name = str(folder) in known_devices()
            raise UsageError(
                f"{FOLDER} {folder}: no such folder",
                fix=f"name the device with --device {folder}" if is_name else "give a folder of device files",
            )
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
