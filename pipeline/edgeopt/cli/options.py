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
        help="Folder for relative paths that are not found beside the recipe.",
        envvar="EDGEOPT_DATA",
    ),
]
DeviceFolders = Annotated[
    list[Path] | None, typer.Option("--devices", help="Folder with your own device files.")
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
    """Folders of device files: the given ones, then ``./devices``."""
    return (*(given or ()), Path("devices"))
