"""Coded weights: size, accuracy and memory in TensorFlow Lite Micro for several mean numbers of bits.

    python benchmarks/coded.py [--bits 2.5,3,4] [RECIPE ...]

Each recipe is run with every number of bits instead of its own; without ``--bits``, as it is. Everything is
measured on the recipe's device, which must have been set up (``edgeopt devices setup cortex-m``), on the
evaluation data. Trained steps are in the store and reused. Exit code 1: a gate of a recipe fails.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeopt.commands.optimize import optimize
from edgeopt.results import Report, Result

RECIPES = ("mlperf-tiny-kws-best", "mlperf-tiny-resnet8-best", "resnet20-best")
CODED = "coded"
"""The variant with coded weights in these recipes."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--bits", default="", help="mean numbers of bits, such as 2.5,3,4")
    given = parser.parse_args()
    bits = [f"optimize.{CODED}.coarsen.bits={each}" for each in given.bits.split(",") if each]
    print(
        f"{'recipe':<26} {'variant':<10} {'bytes':>8} {'top-1 %':>8} {'drop':>6} {'agree %':>8} {'arena':>8}"
    )
    fails = 0
    for name in given.recipes:
        for number, override in enumerate(bits or [""]):
            report = run(name, [override, "gates=[]"] if override else [])
            fails += report.exit_code
            for row in report.results if number == 0 else of_variant(report, CODED):
                label = f"{row.variant} {override.partition('=')[2]}" if row.variant == CODED else row.variant
                print(f"{name:<26} {label:<10} {figures(row)}", flush=True)
    return int(bool(fails))


def run(name: str, overrides: Sequence[str]) -> Report:
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        return optimize(name, overrides=overrides, out=Path(folder) / "run")


def of_variant(report: Report, variant: str) -> list[Result]:
    return [row for row in report.results if row.variant == variant]


def figures(row: Result) -> str:
    """Bytes, accuracy, drop and agreement in percent, and bytes of the arena, or why there are none."""
    if row.status != "ok":
        return row.reason
    values = {name: each.value for name, each in row.measurements.items()}
    return (
        f"{values['size_bytes']:>8,.0f} {100 * values['top1']:>8.2f} {100 * values['top1_drop']:>6.2f} "
        f"{100 * values['agreement']:>8.2f} {values['arena_bytes']:>8,.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
