"""Quality of the recipes of other tasks than classification, beside int8 of other tools.

    python benchmarks/tasks.py [digits-detection digits-segmentation digits-ocr]

Prints Markdown. Drops are those of the recipe's first metric from the source model, with the interval of
resampled samples. The other tools run with their defaults, by ``by_hand_tasks.py``; their files are measured
in the same runtimes, by the same decoder and metric. Takes about half an hour on two cores.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from edgeopt.commands.optimize import optimize
from edgeopt.results import Measurement, Report, Result

HERE = Path(__file__).resolve().parent
FORMATS = "formats=[tflite,onnx,torchscript,executorch]"


class Part(NamedTuple):
    """What is measured of a recipe."""

    source: str
    """What the source model has to reach, by a metric of the recipe."""
    limit: float
    """Largest drop of the first metric."""
    variants: str
    tools: tuple[str, ...]
    """Functions of ``by_hand_tasks.py``, each with the suffix of its file."""


PARTS = {
    "digits-detection": Part(
        "map50 at least 90 %",
        0.01,
        "{float: {}, int8: {quantize: {scheme: int8, max_drop: 0.005}}, no_search: {quantize: int8}}",
        ("ai_edge_quantizer.tflite", "onnxruntime.onnx", "torch_fx.ptl", "executorch.pte"),
    ),
    "digits-segmentation": Part(
        "miou at least 85 %",
        0.005,
        "{float: {}, int8: {quantize: int8}}",
        ("tflite_converter.tflite", "ai_edge_quantizer.tflite", "onnxruntime.onnx", "executorch.pte"),
    ),
    "digits-ocr": Part(
        "cer at most 5 %",
        0.005,
        "{float: {}, dynamic_int8: {quantize: dynamic_int8}, int8: {quantize: int8}, "
        "gru_float: {quantize: {scheme: int8, layers: {gru: float32}}}}",
        (
            "ai_edge_quantizer_dynamic.tflite",
            "onnxruntime_dynamic.onnx",
            "torch_dynamic.ptl",
            "ai_edge_quantizer.tflite",
            "onnxruntime.onnx",
            "torch_fx.ptl",
        ),
    ),
}


def row(name: str, metric: str, values: dict[str, Measurement], drop: Measurement, limit: float) -> str:
    ratio = f"{values['latency_ratio'].value:.2f}" if "latency_ratio" in values else "–"
    interval = "–"
    if drop.ci95 is not None:
        interval = "{:+.2f} to {:+.2f}".format(*(100 * end for end in drop.ci95))
    met = "yes" if drop.value <= limit else "no"
    return (
        f"| {name} | {100 * values[metric].value:.2f} | {100 * drop.value:+.2f} | {interval} "
        f"| {values['size_bytes'].value:,.0f} | {ratio} | {met} |"
    )


def of_edgeopt(result: Result, metric: str, limit: float) -> str:
    """A row; a list entry with the reason if there is no file."""
    name, values = f"edgeopt {result.variant}.{result.format}", result.measurements
    if result.status != "ok":
        return f"- {name}: {result.reason.splitlines()[0]}"
    return row(name, metric, values, values[f"{metric}_drop"], limit)


def of_tool(recipe: str, file: Path, metric: str, report: Report, limit: float) -> str:
    """The same of another tool's file."""
    written = python(HERE / "by_hand_tasks.py", recipe, file.stem, file)
    if written.returncode:
        return f"- {file.name}: {reason(written.stderr)}"
    shipped = HERE.parent / "recipes" / f"{recipe}.yaml"
    run = python("-m", "edgeopt", "profile", file, "--recipe", shipped, "--json", "--min-seconds", "0.1")
    if run.returncode:
        return f"- {file.name}: {reason(run.stderr)}"
    (result,) = Report.model_validate_json(run.stdout).results
    assert report.source is not None
    (info,) = [info for info in report.metrics if info.name == metric]
    drop = report.source.measurements[metric].value - result.measurements[metric].value
    signed = (drop if info.better == "higher" else -drop) + 0.0  # 0, not -0
    measured = Measurement(value=signed, kind="points", role="drop")
    return row(file.name, metric, result.measurements, measured, limit)


def reason(stderr: str) -> str:
    """The message of edgeopt, without its fix; otherwise the last line."""
    lines = stderr.strip().splitlines()
    return next((line for line in lines if line.startswith("error: ")), lines[-1])


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="edgeopt-benchmark-") as name:
        folder = Path(name)
        for recipe in names:
            part = PARTS[recipe]
            report = optimize(
                recipe,
                out=folder / recipe,
                store=folder / "store",
                overrides=[FORMATS, f"optimize={part.variants}", "gates=[]"],
                keep_going=True,
            )
            metric, source = report.primary_metric, report.source
            assert source is not None
            quality = [(key, each) for key, each in source.measurements.items() if each.role == "quality"]
            listed = ", ".join(f"{key} {100 * each.value:.2f} %" for key, each in quality)
            print(f"### {recipe}\n")
            print(f"Source model: {listed}, {quality[0][1].n} samples; goal: {part.source}.")
            print(f"Goal of int8: {metric} at most {100 * part.limit:g} pt worse.\n")
            print(f"| | {metric} % | drop pt | 95 % | bytes | ÷ float | goal |")
            print("|---|---:|---:|---:|---:|---:|---|")
            lines = [of_edgeopt(result, metric, part.limit) for result in report.results]
            lines += [of_tool(recipe, folder / file, metric, report, part.limit) for file in part.tools]
            for start in ("|", "-"):  # files that could not be written are listed after the table
                print(*(line for line in lines if line.startswith(start)), "", sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
