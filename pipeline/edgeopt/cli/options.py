"""Options that several commands share."""

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
        help="Where relative paths are looked up when not beside the recipe.",
        envvar="EDGEOPT_DATA",
    ),
]
DeviceFolders = Annotated[
    list[Path] | None, typer.Option("--devices", help="A folder with device files of your own.")
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Where finished work is kept (default: artifacts/store).", envvar="EDGEOPT_STORE"
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="Time as a known protocol does: mlperf-tiny (at least 10 s, five times, median).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def folders(given: list[Path] | None) -> tuple[Path, ...]:
    """Folders of device files: the given ones, then ``./devices``."""
    return (*(given or ()), Path("devices"))
