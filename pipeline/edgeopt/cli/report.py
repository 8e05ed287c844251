"""``report``: the report of an earlier run, or the page of all runs of a folder."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeopt.results import Report

LATEST = Path("artifacts/runs/latest")


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its report.json.")] = LATEST,
    format: Annotated[
        str | None, typer.Option("--format", help="table (default), md, html, json, junit or csv.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Only the results of this device.")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser, and print its path.")
    ] = False,
    index: Annotated[
        Path | None,
        typer.Option("--index", help="Write an overview page of all runs in this folder instead."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File of the overview page (default: index.html in that folder)."),
    ] = None,
) -> None:
    """Show the report of an earlier run, or write the overview page of a folder of runs.

    'edgeopt optimize' updates artifacts/runs/index.html itself; --index is for runs in other folders, such
    as those copied from CI.
    """
    from edgeopt.cli.screen.tables import show_report
    from edgeopt.config.nearest import nearest
    from edgeopt.errors import UsageError
    from edgeopt.reports import RENDERERS, render

    if open_page and format is not None:
        raise UsageError("--open shows the page, --format another form", fix="give only one of them")
    if index is not None and device is not None:
        raise UsageError("--index shows all devices of all runs", fix="leave out --device")
    if index is not None:
        from edgeopt.reports.index import write_index

        page = write_index(index, out)
        typer.echo(page)
        if open_page:
            _show(page)
        return
    if out is not None:
        raise UsageError(
            "--out requires --index", fix="redirect stdout: edgeopt report RUN --format html > FILE"
        )
    shown = read_report(run)
    name = "report.html"
    if device is not None:
        if device not in shown.devices():
            raise UsageError(f"the run has no device {device!r}{nearest(device, shown.devices())}")
        shown, name = shown.of_device(device), f"devices/{device}.html"
    if open_page:
        page = (run if os.path.isdir(run) else run.parent) / name
        if not page.is_file():
            raise UsageError(
                f"{page} does not exist",
                fix=f"write a page: edgeopt report {run} --format html > report.html",
            )
        typer.echo(page)
        _show(page)
    elif format is None or format == "table":
        show_report(shown)
    elif format in RENDERERS:
        typer.echo(render(shown, format).encode(), nl=False)
    else:
        raise UsageError(f"no report format {format!r}", fix=f"choose table, {', '.join(RENDERERS)}")


def _show(page: Path) -> None:
    """Open a page in a browser, where there is one; its path was printed."""
    import webbrowser

    # Without a display, only browsers of the terminal would be found, which run no script.
    graphical = sys.platform != "linux" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if not graphical or not webbrowser.open(page.resolve().as_uri()):
        typer.echo("no browser was found: open the file above yourself", err=True)


def read_report(run: Path) -> "Report":
    """Read the report of a run from its folder or file.

    Raises:
        UsageError: the file is missing, or is not a report of this version.
    """
    from pydantic import ValidationError

    from edgeopt.config.files import regular
    from edgeopt.config.nearest import nearest
    from edgeopt.errors import UsageError
    from edgeopt.results import Report

    path = run / "report.json" if os.path.isdir(run) else run
    try:
        return Report.model_validate_json(regular(path).read_bytes())
    except OSError as error:
        runs = (
            [each.parent.name for each in run.parent.glob("*/report.json")] if not os.path.exists(run) else []
        )
        raise UsageError(
            f"no report in {run}: {error.strerror}{nearest(run.name, runs)}", fix="give the folder of a run"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"{path} is not a complete report: {'.'.join(map(str, first['loc']))} {first['msg'].lower()}",
            fix="run edgeopt optimize again",
        ) from error
