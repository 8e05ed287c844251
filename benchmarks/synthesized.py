"""int8 calibrated on samples made from batch norms, beside int8 calibrated on real samples.

    EDGEOPT_DATA=<folder> python benchmarks/synthesized.py [--format tflite]

Prints Markdown: for each model, SNR and accuracy of int8 by what it is calibrated on. ``range`` is whether
``edgeopt synthesize`` was told the range of the samples. Takes some minutes on two cores.
"""

import argparse
import json
import tempfile
from pathlib import Path

import edgeopt
from edgeopt.commands.synthesize import synthesize
from edgeopt.results import Result

MODELS: dict[str, tuple[tuple[float, float] | None, ...]] = {
    "mlperf-tiny-kws": (None,),
    "mlperf-tiny-resnet8": (None, (0, 255)),
    "resnet20-cifar10": (None, (0, 255)),
}
QUICK = ("gates=[]", "latency={min_runs: 2, min_seconds: 0, max_seconds: 1}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", default="tflite")
    given = parser.parse_args()
    print("| model | calibrated on | SNR dB | agreement % | drop pt |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for recipe, ranges in MODELS.items():
            show(recipe, "real samples", int8(recipe, given.format, folder))
            for bounds in ranges:
                file = folder / f"{recipe}-{bounds is not None}.npz"
                synthesize(recipe, file, bounds=bounds, store=folder / "store")
                title = "64 made, " + ("range unknown" if bounds is None else "range known")
                show(recipe, title, int8(recipe, given.format, folder, file))


def int8(recipe: str, form: str, folder: Path, file: Path | None = None) -> Result:
    """The result of int8, calibrated on a file or on what the recipe says."""
    settings = [*QUICK]
    if file is not None:
        settings.append(f"data.calibration={json.dumps({'uses': 'npz', 'with': {'path': str(file)}})}")
    out = folder / f"{recipe}-{file.stem if file else 'real'}"
    report = edgeopt.optimize(
        recipe, out=out, store=folder / "store", variants=["int8"], formats=[form], overrides=settings
    )
    return next(row for row in report.results if row.variant == "int8")


def show(recipe: str, title: str, row: Result) -> None:
    figures = [row.status, "–", "–"]
    if row.status == "ok":
        snr, agreement, drop = (
            row.measurements[name].value for name in ("fidelity_snr_db", "agreement", "top1_drop")
        )
        figures = [f"{snr:.1f}", f"{100 * agreement:.2f}", f"{100 * drop:+.2f}"]
    print(f"| {recipe} | {title} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
