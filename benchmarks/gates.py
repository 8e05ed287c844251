"""Error rates of a gate with ``confidence``, on simulated pairs of models with and without a true drop.

    python benchmarks/gates.py [--pairs 2000]

For evaluation sets of several sizes, in which a fraction of answers changes at random (half of them for the
better), it prints the false alarm rate of a gate ``max_drop: 0, confidence: 0.95``, the smallest drop that
the set can detect, and how often the gate fails if the true drop is that large, and twice as large. It also
prints the time of ``edgeopt check`` against a baseline of 10,000 samples.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgeopt.evaluation.statistics import Paired, detectable_drop, mcnemar, score_bounds
from edgeopt.reports import write_report
from edgeopt.results import Artifact, Measurement, Report, Result, Run, Samples

SIZES = (40, 400, 2000, 10_000)
CHANGING = (0.01, 0.05, 0.1)


def fails(samples: int, changing: float, drop: float, pairs: int, seed: int) -> float:
    """Fraction of simulated comparisons in which a gate that allows no drop fails."""
    random = np.random.default_rng(seed)
    worse, better = changing / 2 + drop, changing / 2
    draws = random.multinomial(samples, [worse, better, 1 - worse - better], pairs)
    outcomes, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    wrong = sum(
        int(count)
        for (lost, won), count in zip(outcomes.tolist(), counts, strict=True)
        if score_bounds(lost, won, samples, 0.95).low > 0 and mcnemar(lost, won) <= 0.05
    )
    return wrong / pairs


def expected(samples: int, changing: float) -> Paired:
    """A pair with the expected number of changes if there is no drop."""
    before, after = np.ones(samples), np.ones(samples)
    half = round(samples * changing / 2)
    after[:half] = 0
    before[half : 2 * half] = 0
    return Paired(before, after)


def check_seconds(samples: int) -> float:
    """Time of ``edgeopt check`` for a run with this many samples and 16 artifacts, best of three."""
    right = np.random.default_rng(0).random(samples) < 0.9
    rows = tuple(
        Result(
            variant=variant,
            format=format,
            device="host",
            status="ok",
            artifact=Artifact(path="x", digest="0" * 64, size_bytes=1),
            measurements={"top1": Measurement(value=0.9)},
            samples={"top1": Samples.pack(right.astype(np.float64))},
        )
        for variant in ("float", "int8", "slim", "mixed")
        for format in ("tflite", "onnx", "torchscript", "executorch")
    )
    run = Run(started="", seconds=0, command="", edgeopt="", evaluation_digest="0")
    command = [sys.executable, "-m", "edgeopt"]
    with tempfile.TemporaryDirectory() as folder:
        write_report(Report(recipe="r", run=run, results=rows), Path(folder))
        baseline = str(Path(folder, "baseline.json"))
        subprocess.run(
            [*command, "baseline", "write", folder, "--out", baseline], check=True, capture_output=True
        )
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(
                [*command, "check", folder, "--against", baseline], check=True, capture_output=True
            )
            times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    pairs = parser.parse_args().pairs
    print(f"{pairs} simulated pairs per row\n")
    print(
        "| samples | random changes | fails without a drop | smallest detectable drop "
        "| fails at this drop | at twice this drop |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    for samples in SIZES:
        for changing in CHANGING:
            drop = detectable_drop(expected(samples, changing))
            wrong, once, twice = (
                fails(samples, changing, true, pairs, seed) for seed, true in enumerate((0.0, drop, 2 * drop))
            )
            print(f"| {samples:,} | {changing:.0%} | {wrong:.1%} | {drop:.2%} | {once:.0%} | {twice:.1%} |")
    print(f"\nedgeopt check, 16 artifacts, 10,000 samples: {check_seconds(10_000):.2f} s")


if __name__ == "__main__":
    main()
