"""Converts an outcome into measurements and notes. Pure functions."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeopt.devices.budget import usage
from edgeopt.devices.device import Device
from edgeopt.devices.estimates import latency_band
from edgeopt.errors import StageError
from edgeopt.evaluation.confidence.intervals import quantile_interval
from edgeopt.formats.known import format_named, model_files
from edgeopt.model import Model
from edgeopt.results import EMULATED, SPARSE, Measurement
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.protocol import TimedInterval

BUSY_CORES = 0.25
"""CPU time of other programs during a latency measurement, in cores, above which the machine is busy."""
SLOWER_CLOCK = 0.9
"""Ratio of the clock after and before the runs below which the machine was throttled."""
FASTER = 0.95
"""Latency ratio to the float artifact below which sparsity pays off."""


class Readings(NamedTuple):
    """The measurements of one artifact on one device, and notes on their validity."""

    values: dict[str, Measurement]
    notes: tuple[str, ...]


def readings(
    model: Model, device: Device, outcome: Outcome, arithmetic: Mapping[str, float] | None = None
) -> Readings:
    """All measurements that do not depend on the outputs: size, latency, memory, arithmetic.

    ``arithmetic``: MACs, parameters and sparsity, as far as they are known.
    """
    values = sizes(model_files(model))
    if outcome.error:
        return Readings(values, outcome.notes)
    values |= latency(outcome)
    values |= {name: Measurement.of(name, value) for name, value in (arithmetic or {}).items()}
    notes = (*outcome.notes, *conditions(outcome.intervals), *sparsity_notes(values))
    if not len(outcome.times.get("latency", ())):
        for estimated, basis in (estimated_latency(model, device), estimated_flash(model, device)):
            values |= estimated
            notes += basis
    if device.emulated:
        values = without_host_values(values)
        notes += (EMULATED,) if outcome.outputs else ()
    return Readings(values, notes)


def latency(outcome: Outcome) -> dict[str, Measurement]:
    """Latency percentiles, minimum and maximum in ms, and the ratio to the interleaved float artifact.

    Includes load time, memory and the runtime's own measurements. The 95 % confidence intervals of quantiles
    are from order statistics.
    """
    times, result = outcome.times, outcome.result
    seconds = times.get("latency", np.empty(0))
    values: dict[str, Measurement] = {}

    def add(name: str, value: float, n: int, ci95: tuple[float, float] | None = None) -> None:
        values[name] = Measurement.of(name, value, n=n, ci95=ci95)

    if len(seconds):
        for percent in (50, 90, 99):
            value = float(np.percentile(seconds, percent)) * 1e3
            interval = quantile_interval(seconds * 1e3, percent / 100)
            add(f"latency_p{percent}_ms", value, len(seconds), interval)
        add("latency_min_ms", float(seconds.min()) * 1e3, len(seconds))
        add("latency_max_ms", float(seconds.max()) * 1e3, len(seconds))
    repeats = times.get("repeats", np.empty(0))
    if len(repeats) > 1:
        means = [part.mean() for part in np.split(seconds, np.cumsum(repeats.astype(int))[:-1])]
        add("latency_median_ms", float(np.median(means)) * 1e3, len(means))
    baseline = times.get("baseline", np.empty(0))
    if len(seconds) and len(baseline):
        pairs = min(len(seconds), len(baseline))
        ratios = seconds[:pairs] / baseline[:pairs]
        add("latency_ratio", float(np.median(ratios)), pairs, quantile_interval(ratios, 0.5))
    if result is not None:
        if (load := result["load_seconds"]) is not None:
            add("load_ms", load * 1e3, 1)
        for name, measured in result["measurements"].items():
            values[name] = Measurement.of(name, measured["value"], unit=measured["unit"])
        if (peak := result["peak_memory_bytes"]) is not None:
            add("peak_memory_bytes", peak, 1)
    return values


def estimated_latency(model: Model, device: Device) -> tuple[dict[str, Measurement], tuple[str, ...]]:
    """The band of one run's time on a device that times nothing, with its basis as a note.

    Without a band, the note says why. The ends are measurements of their own: a gate on a latency never sees
    them, unless it names one of them.
    """
    if device.estimate is None:
        return {}, ()
    try:
        band = latency_band(format_named(model.format).breakdown(model.path).layers, device)
    except StageError:
        return {}, ()
    if band is None:
        return {}, ("no latency is estimated: the published figures are for int8 layers of known size",)
    values = {
        name: Measurement.of(name, value)
        for name, value in (("estimated_latency_min_ms", band.low), ("estimated_latency_max_ms", band.high))
    }
    span = " to ".join(value.text for value in values.values())
    return values, (f"an estimate, nothing was timed: one run takes {span}, from {band.basis}",)


def estimated_flash(model: Model, device: Device) -> tuple[dict[str, Measurement], tuple[str, ...]]:
    """The band of the file with the runtime's code, where code sizes are published, and a note on it."""
    try:
        shares = usage(model.path, device, model.format).shares
    except StageError:
        return {}, ()
    flash = next((share for share in shares if share.memory == "flash" and share.sources), None)
    if flash is None or flash.high is None:
        return {}, ()
    values = {"estimated_flash_min_bytes": flash.low, "estimated_flash_max_bytes": flash.high}
    return (
        {name: Measurement.of(name, value) for name, value in values.items()},
        (f"an estimate of {flash}; 'edgeopt lint --json' names the sources",),
    )


def conditions(intervals: Sequence[TimedInterval]) -> tuple[str, ...]:
    """Notes on the machine's state during a latency measurement: whether it was busy or throttled."""
    others = max((interval["other_cores"] or 0.0 for interval in intervals), default=0.0)
    stolen = max((interval["stolen_cores"] or 0.0 for interval in intervals), default=0.0)
    notes = []
    if others > BUSY_CORES:
        cores = max(interval["cores"] or 0 for interval in intervals)
        of_all = f" of its {cores}" if cores else ""
        notes.append(
            f"the machine was busy: other programs used {others:.1f}{of_all} cores while latency was measured"
        )
    if stolen > BUSY_CORES:
        notes.append(f"the machine was busy: its host withheld {stolen:.1f} cores while latency was measured")
    for interval in intervals:
        before, after = interval["before"], interval["after"]
        first, last = before["frequency_mhz"], after["frequency_mhz"]
        if before["throttled"] or after["throttled"]:
            notes.append("the machine was throttled, as its firmware reports")
        elif first and last and last < SLOWER_CLOCK * first:
            notes.append(
                f"the machine was throttled: its clock fell from {first:g} to {last:g} MHz "
                "while latency was measured"
            )
        for index, (first_gpu, last_gpu) in enumerate(zip(before["gpus"], after["gpus"], strict=False)):
            first, last = first_gpu["clock_mhz"], last_gpu["clock_mhz"]
            if first and last:
                fell = ": it was throttled or idle" if last < SLOWER_CLOCK * first else ""
                notes.append(f"GPU {index}: clock {first:g} MHz before and {last:g} MHz after the runs{fell}")
    return tuple(dict.fromkeys(notes))


def sparsity_notes(values: Mapping[str, Measurement]) -> tuple[str, ...]:
    """Notes on the measured benefit of zero weights: most runtimes do not skip them."""
    zeros, ratio = values.get("sparsity"), values.get("latency_ratio")
    if zeros is None or zeros.value < SPARSE:
        return ()
    sparsity = f"{zeros.value:.0%} of the weights are zero"
    if ratio is not None and ratio.value < FASTER:
        return (f"{sparsity}; latency is {ratio.value:.2f} of the float artifact's",)
    return (f"{sparsity}: this reduces the compressed size (gzip_bytes), not the latency",)


def without_host_values(values: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """The measurements of an emulated device, without those that are properties of the host."""
    return {name: value for name, value in values.items() if name not in ("load_ms", "peak_memory_bytes")}


def sizes(files: Sequence[Path]) -> dict[str, Measurement]:
    """Total bytes of an artifact's files, uncompressed and compressed with gzip, as in a download."""
    data = b"".join(file.read_bytes() for file in files)
    return {
        "size_bytes": Measurement.of("size_bytes", len(data)),
        "gzip_bytes": Measurement.of("gzip_bytes", len(gzip.compress(data, 9, mtime=0))),
    }
