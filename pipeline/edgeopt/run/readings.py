"""From what a device answered to measurements and remarks. Pure: the same outcome, the same numbers."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeopt.devices.device import Device
from edgeopt.evaluation.statistics import quantile_interval
from edgeopt.formats.known import model_files
from edgeopt.model import Model
from edgeopt.results import EMULATED, SPARSE, Measurement
from edgeopt.run.outcome import Outcome
from edgeopt.run.protocol import Spell

BUSY_CORES = 0.25
"""Time that other programs took while latency was measured, in cores: more than a quiet system needs."""
SLOWER_CLOCK = 0.9
FASTER = 0.95


class Readings(NamedTuple):
    """What was measured of one artifact on one device, and what must be known beside it."""

    values: dict[str, Measurement]
    notes: tuple[str, ...]


def readings(
    model: Model, device: Device, outcome: Outcome, arithmetic: Mapping[str, float] | None = None
) -> Readings:
    """All that does not depend on the answers: size, time, memory, arithmetic.

    ``arithmetic`` are MACs, parameters and sparsity, where the file tells them.
    """
    values = sizes(model_files(model))
    if outcome.error:
        return Readings(values, outcome.notes)
    values |= latency(outcome)
    values |= {name: Measurement.of(name, value) for name, value in (arithmetic or {}).items()}
    notes = (*outcome.notes, *conditions(outcome.spells), *sparse(values))
    if device.emulated:
        values = of_the_device(values)
        notes += (EMULATED,) if outcome.outputs else ()
    return Readings(values, notes)


def latency(outcome: Outcome) -> dict[str, Measurement]:
    """Percentiles and ends in ms of one artifact, and its ratio to the interleaved float artifact.

    Beside them stands what the runtime says of loading and memory.
    """
    times, result = outcome.times, outcome.result
    seconds = times.get("latency", np.empty(0))
    found: dict[str, Measurement] = {}

    def tell(name: str, value: float, n: int, ci95: tuple[float, float] | None = None) -> None:
        found[name] = Measurement.of(name, value, n=n, ci95=ci95)

    if len(seconds):
        for percent in (50, 90, 99):
            value = float(np.percentile(seconds, percent)) * 1e3
            interval = quantile_interval(seconds * 1e3, percent / 100)
            tell(f"latency_p{percent}_ms", value, len(seconds), interval)
        tell("latency_min_ms", float(seconds.min()) * 1e3, len(seconds))
        tell("latency_max_ms", float(seconds.max()) * 1e3, len(seconds))
    repeats = times.get("repeats", np.empty(0))
    if len(repeats) > 1:
        means = [part.mean() for part in np.split(seconds, np.cumsum(repeats.astype(int))[:-1])]
        tell("latency_median_ms", float(np.median(means)) * 1e3, len(means))
    base = times.get("baseline", np.empty(0))
    if len(seconds) and len(base):
        pairs = min(len(seconds), len(base))
        ratios = seconds[:pairs] / base[:pairs]
        tell("latency_ratio", float(np.median(ratios)), pairs, quantile_interval(ratios, 0.5))
    if result is not None:
        if (loading := result["load_seconds"]) is not None:
            tell("load_ms", loading * 1e3, 1)
        for name, measured in result["measurements"].items():
            found[name] = Measurement.of(name, measured["value"], unit=measured["unit"])
        if (peak := result["peak_memory_bytes"]) is not None:
            tell("peak_memory_bytes", peak, 1)
    return found


def conditions(spells: Sequence[Spell]) -> tuple[str, ...]:
    """What must be known of the machine beside a latency: that it was busy, throttled or lost its clock."""
    others = max((spell["other_cores"] or 0.0 for spell in spells), default=0.0)
    stolen = max((spell["stolen_cores"] or 0.0 for spell in spells), default=0.0)
    notes = []
    if others > BUSY_CORES:
        cores = max(spell["cores"] or 0 for spell in spells)
        of_all = f" of its {cores}" if cores else ""
        notes.append(
            f"the machine was busy: other programs took {others:.1f}{of_all} cores while latency was measured"
        )
    if stolen > BUSY_CORES:
        notes.append(f"the machine was busy: its host withheld {stolen:.1f} cores while latency was measured")
    for spell in spells:
        before, after = spell["before"], spell["after"]
        first, last = before["frequency_mhz"], after["frequency_mhz"]
        if before["throttled"] or after["throttled"]:
            notes.append("the machine was throttled: it says so itself")
        elif first and last and last < SLOWER_CLOCK * first:
            notes.append(
                f"the machine was throttled: its clock fell from {first:g} to {last:g} MHz "
                "while latency was measured"
            )
        for index, (first_gpu, last_gpu) in enumerate(zip(before["gpus"], after["gpus"], strict=False)):
            first, last = first_gpu["clock_mhz"], last_gpu["clock_mhz"]
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


def sizes(files: Sequence[Path]) -> dict[str, Measurement]:
    """Bytes of an artifact's files as they are, and as a download compresses them."""
    data = b"".join(file.read_bytes() for file in files)
    return {
        "size_bytes": Measurement.of("size_bytes", len(data)),
        "gzip_bytes": Measurement.of("gzip_bytes", len(gzip.compress(data, 9, mtime=0))),
    }
