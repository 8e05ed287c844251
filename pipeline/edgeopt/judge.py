"""From outputs and times to measurements, hops and verdicts. Pure: same outcomes, same report."""

import gzip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.model import Array
from edgeopt.plugin import Metric, Score
from edgeopt.results import SPARSE, Gate, Hop, Measurement, Result, Verdict

RESAMPLES = 1000
LOSSLESS_SNR_DB = 60.0
LOSSLESS_MAX_ERROR = 1e-4
BROKEN_SNR_DB = 6.0
BROKEN_AGREEMENT = 0.75
BUSY_CORES = 0.25
"""Time that other programs took while latency was measured, in cores: more than a quiet system needs."""
SLOWER_CLOCK = 0.9
FASTER = 0.95
EMULATED = "latency: emulated, not measured"
MAX_SNR_DB = 200.0
"""Identical outputs have no noise; this stands for infinity, which JSON cannot hold."""


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval (Efron 1979) of a mean over samples; None below two samples."""
    if len(values) < 2:
        return None
    generator = np.random.default_rng(0)
    means = [
        values[generator.integers(0, len(values), (50, len(values)))].mean(axis=1)
        for _ in range(RESAMPLES // 50)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def quantile_interval(values: NDArray[np.float64], q: float) -> tuple[float, float] | None:
    """95 % interval of a quantile from order statistics; None below two values.

    The number of values under a quantile is binomial, which gives the ranks of the interval without
    resampling; it is what the bootstrap of a quantile converges to (David and Nagaraja 2003, 7.1).
    """
    count = len(values)
    if count < 2:
        return None
    spread = 1.96 * math.sqrt(count * q * (1 - q))
    low, high = math.floor(count * q - spread), math.ceil(count * q + spread)
    ordered = np.sort(values)
    return float(ordered[max(low, 0)]), float(ordered[min(high, count - 1)])


def measurement(score: Score, unit: str) -> Measurement:
    """A score with the interval that its per-sample values give."""
    per_sample = score.per_sample
    if not math.isfinite(score.value):
        raise UsageError(
            f"a metric gave {score.value}, which is not a number", fix="mend the metric, or its data"
        )
    return Measurement(
        value=score.value,
        unit=unit,
        n=None if per_sample is None else len(per_sample),
        ci95=None if per_sample is None else bootstrap(per_sample),
    )


def accuracy(
    metrics: Sequence[tuple[str, Metric]], outputs: Array, labels: Array | None, source: Array
) -> dict[str, Measurement]:
    """Every metric of one model's outputs and, against labels, its paired drop from the source's.

    Raises:
        UsageError: labels that do not fit the outputs.
    """
    found: dict[str, Measurement] = {}
    for name, metric in metrics:
        if metric.against == "source":
            found[name] = measurement(metric.score(outputs, source), metric.unit)
            continue
        if labels is None:
            continue
        here, there = metric.score(outputs, labels), metric.score(source, labels)
        found[name] = measurement(here, metric.unit)
        sign = 1.0 if metric.higher_is_better else -1.0
        paired = None
        if here.per_sample is not None and there.per_sample is not None:
            paired = sign * (there.per_sample - here.per_sample)
        found[f"{name}_drop"] = measurement(Score(sign * (there.value - here.value), paired), metric.unit)
    return found


def latency(info: Mapping[str, Any], times: Mapping[str, NDArray[np.float64]]) -> dict[str, Measurement]:
    """Percentiles in ms of one artifact, and its ratio to the interleaved float artifact."""
    seconds = times.get("latency", np.empty(0))
    found: dict[str, Measurement] = {}
    if len(seconds):
        for percent in (50, 90, 99):
            found[f"latency_p{percent}_ms"] = Measurement(
                value=float(np.percentile(seconds, percent)) * 1e3,
                unit="ms",
                n=len(seconds),
                ci95=quantile_interval(seconds * 1e3, percent / 100),
            )
    repeats = times.get("repeats", np.empty(0))
    if len(repeats) > 1:
        means = [part.mean() for part in np.split(seconds, np.cumsum(repeats.astype(int))[:-1])]
        found["latency_median_ms"] = Measurement(value=float(np.median(means)) * 1e3, unit="ms", n=len(means))
    base = times.get("baseline", np.empty(0))
    if len(seconds) and len(base):
        pairs = min(len(seconds), len(base))
        ratios = seconds[:pairs] / base[:pairs]
        found["latency_ratio"] = Measurement(
            value=float(np.median(ratios)),
            n=pairs,
            ci95=quantile_interval(ratios, 0.5),
        )
    if info.get("load_seconds") is not None:
        found["load_ms"] = Measurement(value=info["load_seconds"] * 1e3, unit="ms", n=1)
    for name, told in (info.get("measurements") or {}).items():
        found[name] = Measurement(value=float(told["value"]), unit=str(told.get("unit", "")))
    if info.get("peak_memory_bytes") is not None:
        found["peak_memory_bytes"] = Measurement(value=float(info["peak_memory_bytes"]), unit="bytes", n=1)
    return found


def conditions(info: Mapping[str, Any]) -> tuple[str, ...]:
    """What must be known of the machine beside a latency: that it was busy, throttled or lost its clock."""
    spells = info.get("conditions") or []
    others = max((spell.get("other_cores") or 0.0 for spell in spells), default=0.0)
    stolen = max((spell.get("stolen_cores") or 0.0 for spell in spells), default=0.0)
    notes = []
    if others > BUSY_CORES:
        notes.append(
            f"the machine was busy: other programs took {others:.1f} cores while latency was measured"
        )
    if stolen > BUSY_CORES:
        notes.append(f"the machine was busy: its host withheld {stolen:.1f} cores while latency was measured")
    for spell in spells:
        before, after = spell["before"], spell["after"]
        first, last = before.get("frequency_mhz"), after.get("frequency_mhz")
        if before.get("throttled") or after.get("throttled"):
            notes.append("the machine was throttled: it says so itself")
        elif first and last and last < SLOWER_CLOCK * first:
            notes.append(
                f"the machine was throttled: its clock fell from {first:g} to {last:g} MHz "
                "while latency was measured"
            )
        for index, (first_gpu, last_gpu) in enumerate(
            zip(before.get("gpus") or (), after.get("gpus") or (), strict=False)
        ):
            first, last = first_gpu.get("clock_mhz"), last_gpu.get("clock_mhz")
            if first and last:
                fell = ": it was throttled, or idle meanwhile" if last < SLOWER_CLOCK * first else ""
                notes.append(f"GPU {index}: clock {first:g} MHz before and {last:g} MHz after the runs{fell}")
    return tuple(dict.fromkeys(notes))


def sparse(values: Mapping[str, Measurement]) -> tuple[str, ...]:
    """What zeros among the weights are good for, as it was measured: most runtimes multiply by them."""
    zeros, ratio = values.get("sparsity"), values.get("latency_ratio")
    if zeros is None or zeros.value < SPARSE:
        return ()
    told = f"{zeros.value:.0%} of the weights are zero"
    if ratio is not None and ratio.value < FASTER:
        return (f"{told}; latency is {ratio.value:.2f} of the float artifact's",)
    return (f"{told}: that shrinks the download only, when it is compressed (gzip_bytes), not the latency",)


def of_the_device(values: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """An emulated device's measurements, without those that would tell of the machine it is emulated on."""
    return {name: value for name, value in values.items() if name not in ("load_ms", "peak_memory_bytes")}


class Difference(NamedTuple):
    """How far one device's outputs are from another's, for the same file and inputs."""

    samples: int
    differing: int
    """Samples with any difference at all."""
    max_error: float
    """Largest difference of any value of any output."""
    max_steps: int | None
    """The same in quantized units, where every output is quantized."""
    flips: int | None
    """Samples whose largest output is another one; None for outputs of a single value."""
    worst: tuple[int, ...]
    """Samples with the largest differences, the largest first."""

    def measurements(self) -> dict[str, Measurement]:
        """As they stand in a report."""
        found = {"parity_max_error": Measurement(value=self.max_error, n=self.samples)}
        if self.max_steps is not None:
            found = {"parity_max_steps": Measurement(value=self.max_steps, unit="steps", n=self.samples)}
        if self.flips is not None:
            found["parity_flips"] = Measurement(value=self.flips, n=self.samples)
        return found


def difference(
    first: Sequence[Array], second: Sequence[Array], scales: Sequence[float | None], worst: int = 4
) -> Difference:
    """Compare real-valued outputs, each ``[n, ...]``; ``scales`` turn real differences into quantized units.

    A value that is no number on one side only is an infinite difference.

    Raises:
        UsageError: the devices give outputs of different number or size.
    """
    one_has, other_has = ([array.size for array in outputs] for outputs in (first, second))
    if one_has != other_has:
        raise UsageError(f"the outputs have {one_has} and {other_has} values: they cannot be compared")
    count = len(first[0])
    errors = np.zeros(count)
    steps = np.zeros(count)
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        old = one.reshape(count, -1).astype(np.float64)
        new = other.reshape(count, -1).astype(np.float64)
        here = distance(old, new).max(axis=1, initial=0.0)
        errors = np.maximum(errors, here)
        scale = scales[index] if index < len(scales) else None
        steps = np.maximum(steps, np.rint(here / scale) if scale else np.nan)
    flips = None
    if first[0].size > count:
        largest = [outputs[0].reshape(count, -1).argmax(axis=1) for outputs in (first, second)]
        flips = int((largest[0] != largest[1]).sum())
    told = np.isfinite(steps).all()
    order = [int(index) for index in np.argsort(-errors, kind="stable")[:worst] if errors[index] > 0]
    return Difference(
        samples=count,
        differing=int((errors > 0).sum()),
        max_error=float(errors.max(initial=0.0)),
        max_steps=int(steps.max(initial=0.0)) if told else None,
        flips=flips,
        worst=tuple(order),
    )


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute difference of every value; what is no number on one side only is infinitely far."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def output_scales(info: Mapping[str, Any]) -> list[float | None]:
    """Steps of a model's outputs, as the runtime told them; None where one is not quantized."""
    return list(info.get("output_scales") or ())


def sizes(path: Path) -> dict[str, Measurement]:
    """Bytes of an artifact as it is, and as a download compresses it."""
    data = path.read_bytes()
    return {
        "size_bytes": Measurement(value=len(data), unit="bytes"),
        "gzip_bytes": Measurement(value=len(gzip.compress(data, 9, mtime=0)), unit="bytes"),
    }


def hop(stage: str, produced: str, *, lossless: bool, before: Array, after: Array) -> Hop:
    """Compare the outputs of one step with those of the step before, on the same samples.

    A step that only converts must keep the outputs (60 dB, or 1e-4 in every value); a step that
    quantizes or prunes may move them, but a model it leaves without resemblance is broken.
    """
    count = min(len(before), len(after))
    if before.shape[1:] != after.shape[1:]:
        if before[0].size != after[0].size:
            reason = (
                f"{stage} changed the output shape from {list(before.shape[1:])} to {list(after.shape[1:])}"
            )
            return Hop(stage=stage, produced=produced, lossless=lossless, status="broken", reason=reason)
        after = after.reshape(len(after), *before.shape[1:])
    old, new = before[:count].astype(np.float64), after[:count].astype(np.float64)
    error = np.abs(old - new)
    worst = float(error.max()) if error.size else 0.0
    noise, signal = float((error**2).sum()), float((old**2).sum())
    snr = MAX_SNR_DB if noise == 0 else max(-MAX_SNR_DB, 10 * math.log10(max(signal, 1e-300) / noise))
    agreement = _agreement(old, new)
    broken = (
        not np.isfinite(new).all()
        or (lossless and snr < LOSSLESS_SNR_DB and worst > LOSSLESS_MAX_ERROR)
        or (
            not lossless and (snr < BROKEN_SNR_DB or (agreement is not None and agreement < BROKEN_AGREEMENT))
        )
    )
    same = "" if agreement is None else f", the same answer for {agreement:.1%} of {count} samples"
    reason = f"{stage} broke the model: SNR {snr:.1f} dB{same}, largest error {worst:.3g}" if broken else ""
    if not np.isfinite(worst):
        worst, snr = float(np.finfo(np.float64).max), -MAX_SNR_DB
    return Hop(
        stage=stage,
        produced=produced,
        lossless=lossless,
        snr_db=snr if math.isfinite(snr) else -MAX_SNR_DB,
        max_abs_error=worst,
        agreement=agreement,
        status="broken" if broken else "ok",
        reason=reason,
    )


def _agreement(old: NDArray[np.float64], new: NDArray[np.float64]) -> float | None:
    """Share of samples whose largest output is the same; None where there is one output only."""
    flat_old, flat_new = old.reshape(len(old), -1), new.reshape(len(new), -1)
    if flat_old.shape[1] < 2 or not np.isfinite(flat_new).all():
        return None
    return float((flat_old.argmax(axis=1) == flat_new.argmax(axis=1)).mean())


def judge(gates: Sequence[Gate], results: Sequence[Result]) -> list[Verdict]:
    """Every gate on every result it concerns. What was not measured fails.

    A gate that names no variant concerns the optimized ones as well as ``float``.
    """
    verdicts = []
    for gate in gates:
        concerned = [result for result in results if gate.concerns(result)]
        if not concerned:
            verdicts.append(_verdict(gate, None, None, "nothing in this run fits the gate"))
        for result in concerned:
            measured, reason = _measured(gate, result, results)
            verdicts.append(_verdict(gate, result, measured, reason))
    return verdicts


def _measured(gate: Gate, result: Result, results: Sequence[Result]) -> tuple[float | None, str]:
    kind, _ = gate.limit
    known_anyway = gate.metric in ("size_bytes", "gzip_bytes") and gate.metric in result.measurements
    if result.status != "ok" and not (known_anyway and result.status == "skipped"):
        return None, f"not measured: {result.reason.splitlines()[0] if result.reason else result.status}"
    value = result.measurements.get(gate.metric)
    if value is None:
        return None, f"{gate.metric} was not measured"
    if kind in ("max", "min"):
        return value.value, ""
    if kind == "max_drop":
        drop = result.measurements.get(f"{gate.metric}_drop")
        if drop is not None:
            return drop.value, ""
        return None, f"{gate.metric} of the source model was not measured"
    if gate.metric == "latency_ratio":
        return value.value, ""
    base = _float_of(result, results)
    reference = base.measurements.get(gate.metric) if base is not None else None
    if reference is None:
        return None, f"{gate.metric} of the float variant was not measured"
    if kind == "max_increase":
        return value.value - reference.value, ""
    if reference.value == 0:
        return None, f"{gate.metric} of the float variant is 0: there is no ratio to it"
    if gate.metric.startswith("latency_") and (ratio := result.measurements.get("latency_ratio")) is not None:
        # Two absolute times are never divided: the interleaved ratio is what was measured.
        return ratio.value, ""
    return value.value / reference.value, ""


def _float_of(result: Result, results: Sequence[Result]) -> Result | None:
    for other in results:
        if (other.variant, other.format, other.device) == ("float", result.format, result.device):
            return other
    return None


def _verdict(gate: Gate, result: Result | None, measured: float | None, reason: str) -> Verdict:
    kind, limit = gate.limit
    # A drop of exactly the limit holds, and 0.01 is not a binary number.
    slack = 1e-9 * max(1.0, abs(limit))
    passed = measured is not None and (
        measured >= limit - slack if kind == "min" else measured <= limit + slack
    )
    if measured is not None and not passed:
        reason = f"{gate.metric} {kind} {limit:g}, measured {measured:.6g}"
    return Verdict(
        gate=str(gate),
        variant=result.variant if result else "-",
        format=result.format if result else "-",
        device=result.device if result else "-",
        status="pass" if passed else "fail",
        measured=measured,
        limit=limit,
        reason=reason,
    )
