"""``compare``: several runs of a recipe side by side."""

import os
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson, device_names, format_names

Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="NAME", help="Only this variant of the run, and float."),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format", metavar="NAME", help="Only this format of the run.", autocompletion=format_names
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", metavar="NAME", help="Only this device of the run.", autocompletion=device_names
    ),
]
"""What narrows finished runs."""


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B...", help="Folders of runs, or their report.json."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the comparison to this file, as a page.")
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Confidence level of the bounds of each change.", min=0.5, max=0.9999)
    ] = 0.95,
    variant: Variants = None,
    format: Formats = None,
    device: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs of a recipe: quality, size, latency, SNR and gates of every artifact, also of failed ones.

    The change of the quality is that from RUN_A, sample by sample, with its bounds. The exit code is 0
    whatever the comparison shows, and 2 if the runs cannot be compared.
    """
    import json

    from edgeopt.cli.report import read_report
    from edgeopt.cli.screen.comparison import show_comparison
    from edgeopt.commands.judge import parts_of
    from edgeopt.config.files import write_text, writing
    from edgeopt.recipe.selection import Selection
    from edgeopt.reports.comparison import Compared, as_data
    from edgeopt.reports.comparison import compare as compare_runs
    from edgeopt.reports.comparison.page import render

    selection = Selection(tuple(variant or ()), tuple(format or ()), tuple(device or ()))
    reports = parts_of(list(map(read_report, runs)), selection)
    folders = _folders(runs)
    comparison = compare_runs(
        [Compared(name, report) for name, report in zip(folders, reports, strict=True)],
        confidence,
    )
    if out is not None:
        with writing(out, "choose another file with --out"):
            write_text(out, render(comparison, folders, out))
    if as_json:
        typer.echo(json.dumps(as_data(comparison), indent=2))
        return
    show_comparison(comparison)
    if out is not None:
        typer.echo(f"comparison: {out}")


def _folders(runs: list[Path]) -> dict[str, Path]:
    """The folders of the runs by names that tell them apart, the shortest that do.

    Raises:
        UsageError: there is only one, or one is given twice.
    """
    from edgeopt.errors import UsageError
    from edgeopt.reports.history import REPORT

    if len(runs) < 2:
        raise UsageError("one run is compared with nothing", fix="give two runs or more: edgeopt compare A B")
    files = [(run / REPORT if os.path.isdir(run) else run).resolve() for run in runs]
    for at, file in enumerate(files):
        if file in files[:at]:
            raise UsageError(f"{runs[at]} is given twice", fix="give different runs")
    short = [file.parent.name if file.name == REPORT else file.stem for file in files]
    names = short if len(set(short)) == len(short) else list(map(str, runs))
    return {name: file.parent for name, file in zip(names, files, strict=True)}
