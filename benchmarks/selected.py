"""How many bits coded weights need, chosen on data that do not judge the choice.

    python benchmarks/selected.py [--store STORE] [RECIPE ...]

The smallest file whose drop is within a limit on the selection data is judged on others. The limit is half
of what is to be reached, because the smallest of many files that seem good enough is better there than
elsewhere. ResNet8 is selected on images of its training. Of keywords, there are only those of the evaluation:
each half selects for the other one. Everything is measured in TensorFlow Lite Micro, which must have been
set up (``edgeopt devices setup cortex-m``).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.commands.search import Found, search


class Choice(NamedTuple):
    """What is selected for a recipe, and on which data."""

    limit: str
    bits: str
    """Every combination of these and the calibrators is tried."""
    data: tuple[dict[str, Any], ...]
    """Data that replace those of the recipe, one set for each selection."""


def part(path: str, which: str, share: float) -> dict[str, Any]:
    of = {"uses": "npz", "with": {"path": path}}
    return {"uses": "split", "with": {"of": of, "part": which, "share": share}}


CALIBRATORS = "[minmax, mse]"
KEYWORDS = [part("kws/evaluation400.npz", which, 0.5) for which in ("calibration", "evaluation")]
RECIPES = {
    "mlperf-tiny-kws": Choice(
        "top1 max_drop 0.0025",
        "[2.5, 3, 3.5, 4, 4.5, 5]",
        tuple({"validation": own, "evaluation": other} for own, other in (KEYWORDS, KEYWORDS[::-1])),
    ),
    "mlperf-tiny-resnet8": Choice(
        "top1 max_drop 0.01",
        "[1.8, 2, 2.2, 2.4, 2.6, 2.8, 3]",
        ({"validation": part("cifar10/train4148.npz", "calibration", 0.4)},),
    ),
}
TRIALS = 100
"""More than any of the spaces has points."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--store")
    given = parser.parse_args()
    failures = 0
    for name in given.recipes:
        for data in RECIPES[name].data:
            found = selected(name, data, given.store)
            best = found.result.best
            if best is None:
                print(f"{name}: {found.result.samples} samples select nothing: {found.result.closest}")
                failures += 1
                continue
            drop = next(each for each in found.result.judged if each.trial == best.number)
            (report,) = found.reports.values()
            print(
                f"{name}: {found.result.samples:,} samples select {chosen(best.options)}, "
                f"{best.objectives['size_bytes']:,.0f} B, drop {100 * drop.selection['top1_drop']:+.2f} pt; "
                f"on {report.run.samples} others {100 * drop.evaluation['top1_drop']:+.2f} pt",
                flush=True,
            )
    return int(failures > 0)


def selected(name: str, data: dict[str, Any], store: str | None) -> Found:
    """Try all candidates on the selection data, and judge the front on the evaluation data."""
    choice = RECIPES[name]
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        return search(
            name,
            under=[choice.limit],
            over=[f"coarsen={choice.bits}", f"calibrator={CALIBRATORS}", "quantize=[int8]"],
            trials=TRIALS,
            formats=["tflite"],
            devices=["cortex-m"],
            overrides=[f"data.{key}={json.dumps(value)}" for key, value in data.items()],
            store=store,
            out=Path(folder) / "search",
        )


def chosen(options: dict[str, Any]) -> str:
    return f"{options['coarsen']['bits']:g} bits with {options['quantize']['calibrator']}"


if __name__ == "__main__":
    sys.exit(main())
