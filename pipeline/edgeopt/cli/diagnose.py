"""``diagnose``: the layers and causes of a quantized variant's error, and a proposed change."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson, DataRoot, DeviceFolders, Sets, StoreFolder, folders

if TYPE_CHECKING:
    from edgeopt.evaluation.diagnosis import Diagnosis
    from edgeopt.evaluation.layer_statistics import LayerStatistics

NAME_LENGTH = 44
EXACT_DB = 200.0
"""Signal-to-noise ratio that represents the absence of noise."""
FIGURES = {
    "agreement": "agreement",
    "fidelity_snr_db": "SNR",
    "size_bytes": "size",
    "latency_p50_ms": "p50",
    "latency_ratio": "÷ float",
}
"""Measurements shown before and after the change, with their column titles."""


def diagnose(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_RUN",
            help="A recipe file, the name of a shipped recipe, or the folder of a model's run.",
        ),
    ],
    variant: Annotated[
        str | None, typer.Option("--variant", help="A quantized variant of the recipe.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="onnx, tflite or executorch; of torchscript, the model as a whole."),
    ] = None,
    layers: Annotated[int, typer.Option("--layers", help="How many layers to show.", min=1)] = 10,
    samples: Annotated[int, typer.Option("--samples", help="How many samples to compare on.", min=1)] = 64,
    apply: Annotated[
        bool, typer.Option("--apply", help="Also build the patched variant, and measure both.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write the diagnosis to this file, as a page with the graph."),
    ] = None,
    sets: Sets = None,
    data_root: DataRoot = None,
    devices: DeviceFolders = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Find the layers that degrade a quantized variant, name the causes, and propose a change.

    Exit code 0: diagnosed. 2: the recipe or the command is wrong. 3: something could not run.
    """
    from edgeopt.cli.report import read_report
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.commands.diagnose import diagnose as run
    from edgeopt.config.files import write_text, writing
    from edgeopt.reports.diagnosis import render, with_evaluation
    from edgeopt.reports.history import REPORT

    with Progress(quiet=quiet) as progress:
        diagnosis = run(
            recipe,
            variant or "",
            format or "",
            samples=samples,
            apply=apply,
            store=store,
            overrides=sets or (),
            data_root=data_root,
            device_folders=folders(devices),
            watch=progress,
        )
    if os.path.isfile(os.path.join(recipe, REPORT)):
        diagnosis = with_evaluation(diagnosis, read_report(Path(recipe)))
    if out is not None:
        with writing(out, "choose another file with --out"):
            write_text(out, render(diagnosis))
    if as_json:
        typer.echo(diagnosis.model_dump_json(indent=2))
    else:
        _show(diagnosis, layers)
        if out is not None:
            typer.echo(f"diagnosis: {out}")
    if any("fidelity_snr_db" not in row.measurements for row in diagnosis.applied):
        raise typer.Exit(3)  # poor accuracy is a result, an artifact that does not run is a failure


def _show(diagnosis: "Diagnosis", count: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgeopt.cli.screen.tables import console
    from edgeopt.reports.columns import show
    from edgeopt.reports.diagnosis import evaluation

    out = console()
    comparison = diagnosis.comparison
    facts = [f"SNR {comparison.snr_db:.1f} dB"]
    if comparison.agreement is not None:
        facts.append(f"agreement {comparison.agreement:.2%}")
    if comparison.written_snr_db is not None:
        facts.append(f"computed in float {comparison.written_snr_db:.1f} dB")
    title = f"{diagnosis.variant}.{diagnosis.format} of {diagnosis.recipe} against its float model"
    out.print(Text(f"{title}: {', '.join(facts)}, {comparison.samples} samples of {diagnosis.data}"))
    if found := evaluation(diagnosis):
        out.print(Text(f"on the evaluation data of the run: {found}"))
    if diagnosis.needs_nothing:
        out.print(
            Text("nothing to repair: outputs and decisions are close to those of the float model", "green")
        )
    ranked = sorted(comparison.layers, key=lambda layer: -layer.share)[:count]
    table = Table(title="layers by their share of the error", title_justify="left")
    table.add_column("layer")
    table.add_column("operator")
    for column in ("share", "alone dB", "own dB", "SNR dB", "mean error", "clipped", "spread", "outlier"):
        table.add_column(column, justify="right")
    for layer in ranked:
        table.add_row(Text(_short(layer.name)), Text(layer.operator), *_cells(layer))
    if ranked:
        out.print(table)
    if len(ranked) < len(comparison.layers):
        out.print(
            Text(
                f"{len(comparison.layers) - len(ranked)} more layers: --layers {len(comparison.layers)}",
                "dim",
            )
        )
    for number, cause in enumerate(diagnosis.causes, 1):
        share = f" ({cause.share:.0%} of the model's error)" if cause.share and cause.kind != "export" else ""
        out.print(Text(f"{number}. {cause.text}{share}", "green" if cause.kind == "cost" else "red"))
    if diagnosis.patch:
        out.print(Text("change in the recipe:"))
        for line in diagnosis.patch_text.splitlines():
            # Not wrapped by rich: the YAML must stay valid when it is copied from a narrow terminal.
            typer.echo(f"  {line}")
    if diagnosis.applied:
        known = {name: None for row in diagnosis.applied for name in row.measurements}
        quality = [n for row in diagnosis.applied for n, v in row.measurements.items() if v.role == "quality"]
        metrics = list(dict.fromkeys(quality))
        drops = [f"{name}_drop" for name in metrics if f"{name}_drop" in known]
        shown = [*metrics, *drops, *(name for name in FIGURES if name in known)]
        table = Table(title="before and after, on the evaluation data", title_justify="left")
        table.add_column("variant")
        for name in shown:
            table.add_column(FIGURES.get(name, name.replace("_", " ")), justify="right")
        for row in diagnosis.applied:
            table.add_row(Text(row.variant), *(show(row.measurements.get(name)) for name in shown))
        out.print(table)
        for row in diagnosis.applied:
            if row.reason:
                out.print(Text(f"{row.variant} {row.status}: {row.reason}", "red"))
    for note in diagnosis.notes:
        out.print(Text(f"note: {note}", "yellow"))


def _cells(layer: "LayerStatistics") -> list[str]:
    return [
        f"{layer.share:.1%}",
        _decibels(layer.alone_snr_db),
        _decibels(layer.own_snr_db),
        _decibels(layer.snr_db),
        f"{layer.mean_error:.2g}",
        f"{layer.clipped:.2%}",
        "–" if layer.weight_spread is None else f"{layer.weight_spread:.0f}×",
        f"{layer.outlier:.1f}×",
    ]


def _decibels(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f}"


def _short(name: str) -> str:
    from edgeopt.evaluation.layer_causes import short

    # Fused operators are named by a list of layers; --json contains all of it.
    first = short(name)
    return first if len(first) <= NAME_LENGTH else "…" + first[1 - NAME_LENGTH :]
