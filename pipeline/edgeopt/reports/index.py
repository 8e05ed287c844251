"""All runs of a folder on one page: accuracy, size and latency over time, per recipe."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from edgeopt.config.files import write_text, writing
from edgeopt.errors import UsageError
from edgeopt.reports.history import Damaged, Found, address_of, primary, read_runs
from edgeopt.reports.html import page
from edgeopt.reports.pagedata import verdict_of
from edgeopt.reports.pagedata.findings import Data, cut

INDEX = "index.html"
SCRIPTS = ("elements.js", "theme.js", "scales.js", "history.js", "index.js")
DIGITS = 6
"""Significant digits of plotted values."""


def write_index(folder: Path, out: Path | None = None) -> Path:
    """Write the page of all runs below ``folder`` to ``out``, by default ``index.html`` in it.

    Raises:
        UsageError: the folder does not exist, or the page cannot be written.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"no such folder: {folder}", fix="choose a folder with runs: artifacts/runs")
    target = out or folder / INDEX
    with writing(target, "choose another file with --out"):
        write_text(target, render(*read_runs(folder), folder=folder, place=target))
    return target


def render(runs: Sequence[Found], damaged: Sequence[Damaged], *, folder: Path, place: Path) -> str:
    """The page; ``place`` is its future path, to which links are relative."""
    recipes: dict[str, list[Found]] = {}
    for run in runs:
        recipes.setdefault(run.past.recipe, []).append(run)
    # Most recent recipe first.
    latest = sorted(recipes, key=lambda name: recipes[name][-1].past.run.started, reverse=True)
    data = {
        "recipes": [_recipe(name, recipes[name], folder, place) for name in latest],
        "damaged": [[cut(_within(bad.folder, folder)), cut(bad.reason)] for bad in damaged],
    }
    return page("index.html", "edgeopt", cut(folder.resolve().name or str(folder)), SCRIPTS, data)


def _recipe(name: str, runs: Sequence[Found], folder: Path, place: Path) -> Data:
    """The runs of one recipe; artifacts, devices and processors are listed once and referenced by index."""
    metric = next(
        filter(None, (primary([row.measurements for row in run.past.results]) for run in reversed(runs))),
        "",
    )
    rows = [row.measurements for run in runs for row in run.past.results]
    artifacts: dict[tuple[str, str], int] = {}
    devices: dict[str, int] = {}
    processors: dict[str, int] = {}
    entries = []
    for run in runs:
        past = run.past
        points = []
        for row in past.results:
            cpu = past.environment[row.device].cpu if row.device in past.environment else None
            values = [
                _rounded(row.measurements[measurement].value) if measurement in row.measurements else None
                for measurement in (metric or "agreement", "size_bytes", "latency_p50_ms")
            ]
            points.append(
                [
                    artifacts.setdefault((row.variant, row.format), len(artifacts)),
                    devices.setdefault(row.device, len(devices)),
                    *values,
                    processors.setdefault(cpu or "", len(processors)),
                ]
            )
        status, headline = verdict_of(past.broken, past.gates)
        source = past.source.measurements.get(metric) if past.source is not None else None
        entries.append(
            {
                "started": past.run.started.isoformat(timespec="seconds"),
                "folder": cut(_within(run.folder, folder)),
                "link": address_of(run.folder, place),
                "status": status,
                "headline": headline,
                "ok": sum(row.status == "ok" for row in past.results),
                "of": len(past.results),
                "failed": sum(gate.status == "fail" for gate in past.gates),
                "gates": len(past.gates),
                "samples": past.run.samples,
                "data": cut(past.run.evaluation_digest)[:12],
                "seconds": round(past.run.seconds, 1),
                "edgeopt": cut(past.run.edgeopt),
                "source": None if source is None else _rounded(source.value),
                "points": points,
            }
        )
    return {
        "name": cut(name),
        "metric": cut(metric or "agreement"),
        "share": not metric or any(row[metric].kind == "fraction" for row in rows if metric in row),
        "artifacts": [[cut(variant), cut(form)] for variant, form in artifacts],
        "devices": [cut(device) for device in devices],
        "runs": entries,
    }


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
