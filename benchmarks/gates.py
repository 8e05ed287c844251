"""Error rates of a gate with ``confidence``, on simulated pairs of models.

    python benchmarks/gates.py [--runs 20000] [--only samples | sets]

At a true drop equal to the limit, no more than 5 % of gates may fail, and no more than 5 % pass: it prints
the worst cells over sample size, limit, noise and correlation, for binary metrics, scores and rare losses,
and for metrics of the whole set such as mAP and mIoU (with a tenth of the runs). Then how often a gate fails
at the smallest detectable drop, how often the number of samples that would decide is enough, how often a gate
on mAP or mIoU decides, and the time of ``edgeopt check`` against a baseline of 10,000 samples. Takes several
minutes without the sets, and half an hour with them.
"""

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from edgeopt.evaluation.confidence.drop_tests import Floats, mean_p, tango
from edgeopt.evaluation.confidence.paired import Paired, smallest_set
from edgeopt.evaluation.confidence.sample_sizes import detectable_drop, power, samples_needed
from edgeopt.evaluation.confidence.verdicts import verdict
from edgeopt.reports import write_report
from edgeopt.results import Artifact, Measurement, Report, Result, Run, Samples

Random = np.random.Generator
RUNS = 20_000
"""At 5 % errors, the standard error of a rate is 0.15 points."""
CONFIDENCE = 0.95
SIZES = (20, 40, 100, 400, 2000)
LIMITS = (0.0, 0.005, 0.01, 0.02, 0.05)
ACCURACIES = (0.99, 0.9, 0.6)
CORRELATIONS = (0.0, 0.5, 0.9, 1.0)
CHANGING = (0.01, 0.05, 0.1)
CERTAIN = (1.5, 2.4)
"""Outside this range of Tango's statistic the verdict at 95 % is clear without the exact test."""
SCORE_SIZES = (3, 20, 100, 400, 1000)
RARE = (0.01, 0.02, 0.05, 0.1)
Cell = tuple[float, float, str]
"""Fraction of runs that fail, that pass, and the parameters."""


def binary_rates(worse: float, better: float, samples: int, limit: float, seed: int) -> tuple[float, float]:
    """Fractions of simulated gates that fail and that pass."""
    random = np.random.default_rng(seed)
    draws = random.multinomial(samples, [worse, better, max(0.0, 1 - worse - better)], RUNS)
    outcomes, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    scores = tango(outcomes[:, 0], outcomes[:, 1], samples, limit)
    found = {"fail": 0, "pass": 0, "undecided": 0}
    for (lost, won), score, count in zip(outcomes.tolist(), scores.tolist(), counts.tolist(), strict=True):
        if abs(score) < CERTAIN[0]:
            answer = "undecided"
        elif abs(score) > CERTAIN[1]:
            answer = "fail" if score > 0 else "pass"
        else:
            answer = verdict(pair_of(lost, won, samples), limit, CONFIDENCE)
        found[answer] += count
    return found["fail"] / RUNS, found["pass"] / RUNS


def pair_of(worse: int, better: int, samples: int) -> Paired:
    """A pair with so many changes."""
    before, after = np.ones(samples), np.ones(samples)
    after[:worse] = 0
    before[worse : worse + better] = 0
    return Paired(before, after, is_fraction=True)


def binary_cells() -> Iterator[Cell]:
    """Right and wrong answers of two models whose accuracies differ by the limit."""
    for samples, limit, accuracy, correlation in itertools.product(SIZES, LIMITS, ACCURACIES, CORRELATIONS):
        after = accuracy - limit
        spread = math.sqrt(accuracy * (1 - accuracy) * after * (1 - after))
        both = min(after, accuracy * after + correlation * spread)
        text = f"n = {samples:,}, limit {limit:.1%}, accuracy {accuracy:.0%}, correlation {correlation:g}"
        yield *binary_rates(accuracy - both, after - both, samples, limit, samples), text


def score_rates(drops: Floats, reach: Floats, limit: float) -> tuple[float, float]:
    """Fractions of rows ``[runs, n]`` that fail and that pass, as ``verdict`` does for one row."""
    error = drops.std(axis=1) / math.sqrt(drops.shape[1])
    distance = drops.mean(axis=1) - limit
    rates = []
    for sign in (1.0, -1.0):
        rows = sign * distance > error
        p = mean_p(sign * drops[rows], sign * limit, -reach[rows]) if rows.any() else np.ones(0)
        rates.append(float((p <= 1 - CONFIDENCE).sum()) / len(drops))
    return rates[0], rates[1]


def simulated(
    samples: int, limit: float, draw: Callable[[Random, int, int], tuple[Floats, Floats]], *, fraction: bool
) -> tuple[float, float]:
    """Error rates for scores from ``draw(random, runs, samples)``: before and after, ``[runs, samples]``."""
    if not fraction and samples < smallest_set(CONFIDENCE):
        return 0.0, 0.0  # undecided without a test
    random, chunk, total = np.random.default_rng(samples), max(1, 2_000_000 // samples), np.zeros(2)
    for start in range(0, RUNS, chunk):
        runs = min(chunk, RUNS - start)
        before, after = draw(random, runs, samples)
        values = np.concatenate([before, after], axis=1)
        reach = values.max(axis=1, initial=0) - values.min(axis=1, initial=0)
        total += runs * np.array(score_rates(before - after, np.ones(runs) if fraction else reach, limit))
    return float(total[0]) / RUNS, float(total[1]) / RUNS


def fractions(
    random: Random, runs: int, samples: int, *, limit: float, noise: float, correlation: float
) -> tuple[Floats, Floats]:
    """Scores in 0..1; a part of them is the same before and after."""
    before, fresh = random.beta(4 / noise, 1 / noise, (2, runs, samples))
    after = np.where(random.random((runs, samples)) < correlation, before, fresh)
    return before, after * (1 - limit / 0.8)


def losses(
    random: Random, runs: int, samples: int, *, limit: float, noise: float, correlation: float
) -> tuple[Floats, Floats]:
    """Losses without an upper bound; a part of them is the same before and after."""
    before, fresh = -random.lognormal(0, noise**0.25, (2, runs, samples))
    after = np.where(random.random((runs, samples)) < correlation, before, fresh)
    return before, after - limit


def rare_losses(
    random: Random, runs: int, samples: int, *, rare: float, size: float, noise: float
) -> tuple[Floats, Floats]:
    """Scores of which a few lose much, and the others nothing or a little noise."""
    before = random.uniform(0.85, 0.95, (runs, samples))
    lost = size * (random.random((runs, samples)) < rare)
    return before, before - lost + noise * random.uniform(-1, 1, (runs, samples))


def score_cells() -> Iterator[Cell]:
    for samples, limit, noise, correlation in itertools.product(
        SCORE_SIZES, (0.0, 0.01, 0.05), (0.02, 0.2, 2.0), (0.0, 0.5, 0.95)
    ):
        where = f"n = {samples:,}, limit {limit:g}, noise {noise:g}, correlation {correlation:g}"
        for draw in (fractions, losses):
            drawn = partial(draw, limit=limit, noise=noise, correlation=correlation)
            rates = simulated(samples, limit, drawn, fraction=draw is fractions)
            yield *rates, f"{draw.__name__}, {where}"


def rare_cells() -> Iterator[Cell]:
    for samples, rare, noise, size in itertools.product(SCORE_SIZES, RARE, (0.0, 0.02), (0.3, 0.8, 10.0)):
        drawn = partial(rare_losses, rare=rare, size=size, noise=noise)
        text = f"n = {samples:,}, {rare:.0%} of samples lose {size:g}, noise {noise:g}"
        yield *simulated(samples, rare * size, drawn, fraction=size < 1), text


def power_cells() -> Iterator[Cell]:
    """How often a gate fails at the detectable drop that an earlier sample of the same rates states."""
    for samples, changing in itertools.product(SIZES, CHANGING):
        share = changing / 2
        random = np.random.default_rng(samples)
        draws = random.multinomial(samples, [share, share, 1 - changing], 30)
        stated = [detectable_drop(pair_of(worse, better, samples)) for worse, better, _ in draws.tolist()]
        found = power(share, samples, CONFIDENCE)
        rates = [found(min(drop, 1 - changing)) for drop in stated]
        expected = detectable_drop(pair_of(round(samples * share), round(samples * share), samples))
        measured, _ = binary_rates(share + min(expected, 1 - changing), share, samples, 0.0, samples)
        text = f"n = {samples:,}, {changing:.0%} change at random: {expected:.2%}"
        yield measured, float(np.mean(rates)), text


def enough_cells(cases: int) -> Iterator[Cell]:
    """How often the stated number of samples decides, in a new set of that size."""
    for samples, changing, drop in itertools.product((100, 400), CHANGING, (0.0, 0.02, 0.03)):
        limit, share = 0.01, changing / 2
        rates = [share + drop, share, 1 - changing - drop]
        random, decided, stated = np.random.default_rng(samples), 0, 0
        for worse, better, _ in random.multinomial(samples, rates, cases).tolist():
            if verdict(pair_of(worse, better, samples), limit, CONFIDENCE) != "undecided":
                continue
            needed = samples_needed(pair_of(worse, better, samples), limit, CONFIDENCE)
            if needed is not None:
                lost, won, _ = random.multinomial(needed, rates).tolist()
                score = float(tango(np.array(lost), np.array(won), needed, limit))
                clear = abs(score) > CERTAIN[1]
                decided += clear or verdict(pair_of(lost, won, needed), limit, CONFIDENCE) != "undecided"
                stated += 1
        text = f"n = {samples}, limit 1%, {changing:.0%} change at random, drop {drop:.0%}, {stated} stated"
        yield decided, stated, text


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
    global RUNS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="simulated runs per cell")
    parser.add_argument("--cases", type=int, default=200, help="cases per cell of the number of samples")
    parser.add_argument(
        "--only", choices=("samples", "sets"), help="metrics with a value per sample, or others"
    )
    options = parser.parse_args()
    RUNS = options.runs
    if options.only != "sets":
        of_samples(options.cases)
    if options.only != "samples":
        of_sets(RUNS // 10 if options.only is None else RUNS)
    print(f"\nedgeopt check, 16 artifacts, 10,000 samples: {check_seconds(10_000):.2f} s")


def print_worst(runs: int, groups: Iterable[tuple[str, Iterator[Cell]]]) -> None:
    print(f"\nDrop equal to the limit, {CONFIDENCE:.0%} confidence, {runs:,} runs per cell\n")
    print("| metric | cells | worst fail | in | worst pass | in |\n|---|---:|---:|---|---:|---|")
    for name, cells in groups:
        found = list(cells)
        failed, passed = max(found), max(found, key=lambda cell: cell[1])
        print(
            f"| {name} | {len(found)} | {failed[0]:.1%} | {failed[2]} | {passed[1]:.1%} | {passed[2]} |",
            flush=True,
        )


def of_samples(cases: int) -> None:
    groups = (("binary", binary_cells()), ("scores", score_cells()), ("rare losses", rare_cells()))
    print_worst(RUNS, groups)
    print("\n| smallest detectable drop | fails at this drop | at the one stated by a sample, on average |")
    print("|---|---:|---:|")
    for measured, mean, text in power_cells():
        print(f"| {text} | {measured:.1%} | {mean:.1%} |", flush=True)
    print("\n| number of samples that would decide | enough in |\n|---|---:|")
    total = np.zeros(2)
    for decided, stated, text in enough_cells(cases):
        total += decided, stated
        print(f"| {text} | {decided / max(stated, 1):.0%} |", flush=True)
    print(f"| all | {total[0] / total[1]:.0%} |")


def of_sets(runs: int) -> None:
    import set_gates  # which imports this module

    print_worst(
        runs,
        (
            ("mAP", set_gates.detection_cells(runs)),
            ("mIoU", set_gates.segmentation_cells(runs)),
            ("F1, average precision, ROC AUC, EER, WER", set_gates.other_cells(runs)),
        ),
    )
    print("\n| drop above or below the limit | above: fails | below: passes |\n|---|---:|---:|")
    for failed, passed, text in set_gates.power_cells(runs // 4):
        print(f"| {text} | {failed:.0%} | {passed:.0%} |", flush=True)


if __name__ == "__main__":
    main()
