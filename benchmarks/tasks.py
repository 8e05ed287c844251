"""Quality of the recipes of other tasks than classification, in every format.

    python benchmarks/tasks.py [digits-detection digits-segmentation digits-ocr]

Prints, for each artifact, the recipe's first metric and its drop from the source model with the interval of
resampled samples, the size and the time relative to float. ``plain`` is int8 without a search, beside the
recipe's own variant.
"""

import sys
import tempfile
from pathlib import Path

from edgeopt.commands.optimize import optimize
from edgeopt.results import Measurement, Result

VARIANTS = {
    "digits-detection": "{float: {}, plain: {quantize: int8}, "
    "int8: {quantize: {scheme: int8, max_drop: 0.005}}}",
    "digits-segmentation": "{float: {}, int8: {quantize: int8}}",
    "digits-ocr": "{float: {}, dynamic_int8: {quantize: dynamic_int8}}",
}
GOALS = {"digits-detection": 0.01, "digits-segmentation": 0.005, "digits-ocr": 0.005}


def points(value: Measurement) -> str:
    low, high = value.ci95 or (value.value, value.value)
    return f"{value.value * 100:+6.2f} ({low * 100:+.2f} to {high * 100:+.2f})"


def line(row: Result, metric: str, goal: float) -> str:
    values = row.measurements
    if row.status != "ok":
        return f"{row.variant:<13} {row.format:<12} {row.status}: {row.reason.splitlines()[0]}"
    drop = values[f"{metric}_drop"]
    ratio = values["latency_ratio"].text if "latency_ratio" in values else "-"
    met = "yes" if drop.value <= goal else "no"
    return (
        f"{row.variant:<13} {row.format:<12} {values[metric].value * 100:8.2f} {points(drop):>26} "
        f"{values['size_bytes'].value:10,.0f} {ratio:>8} {met:>5}"
    )


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="edgeopt-benchmark-") as folder:
        for name in names:
            report = optimize(
                name,
                out=Path(folder, name),
                store=Path(folder, "store"),
                overrides=[f"optimize={VARIANTS[name]}", "gates=[]"],
            )
            metric = report.primary_metric
            assert report.source is not None
            source = report.source.measurements[metric]
            print(f"\n{name}: {metric} of the source model {source.value * 100:.2f} %, {source.n} samples")
            print(
                f"{'variant':<13} {'format':<12} {metric + ' %':>8} {'drop, points':>26} "
                f"{'bytes':>10} {'/ float':>8} goal {GOALS[name] * 100:g}"
            )
            for row in report.results:
                print(line(row, metric, GOALS[name]))


if __name__ == "__main__":
    main(sys.argv[1:] or list(VARIANTS))
