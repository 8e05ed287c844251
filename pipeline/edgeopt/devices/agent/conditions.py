"""The state of the machine during latency measurements: clocks, temperature, other load, energy."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable

from edgeopt_agent.cuda import gpu_states
from edgeopt_agent.protocol import MachineState, TimedInterval

PROC = Path("/proc")
SYS = Path("/sys")
BUSY_FIELDS = (0, 1, 2, 5, 6)
"""In the line ``cpu`` of /proc/stat: user, nice, system, irq, softirq. In ticks; user includes guests."""
STEAL_FIELD = 7
ENERGY_SECONDS = 1.0


def conditions(*, gpus: bool = False) -> MachineState:
    """The current state of the machine; ``None`` for values that it does not report.

    ``load``: mean number of running programs in the last minute. ``frequency_mhz``: of the fastest core.
    ``temperature_c``: of the hottest sensor. ``throttled``: as a Raspberry Pi reports it.
    ``gpus``: include the clocks of the GPUs.
    """
    return {
        "load": _load(),
        "governor": read_text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_mhz": _frequency_mhz(),
        "temperature_c": _temperature_c(),
        "throttled": _throttled(),
        "gpus": gpu_states() if gpus else [],
    }


class Watch:
    """Records the machine's state before and after a timed run; ``begin`` after the warm-up, then ``end``.

    ``gpus``: include the clocks of the GPUs.
    """

    def __init__(self, *, gpus: bool = False) -> None:
        self.gpus = gpus
        self.intervals: list[TimedInterval] = []

    def begin(self) -> None:
        """Start a timed interval; there may be several."""
        self.before = self._now()
        self.ticks = _ticks()
        self.own = time.process_time()
        self.start = time.perf_counter()

    def end(self) -> None:
        """End the interval: record the CPU time of other programs, in cores, and the machine's state."""
        seconds = time.perf_counter() - self.start
        own = time.process_time() - self.own
        ticks = _ticks()
        others = stolen = None
        if ticks is not None and self.ticks is not None and seconds > 0:
            per_second = os.sysconf("SC_CLK_TCK")
            busy, steal = ((now - then) / per_second for now, then in zip(ticks, self.ticks))
            others = round(max(0.0, busy - own) / seconds, 3)
            stolen = round(max(0.0, steal) / seconds, 3)
        self.intervals.append(
            {
                "seconds": round(seconds, 3),
                "before": self.before,
                "after": self._now(),
                "cores": os.cpu_count(),
                "other_cores": others,
                "stolen_cores": stolen,
            }
        )

    def _now(self) -> MachineState:
        return conditions(gpus=self.gpus)


def energy_per_run(call: Callable[[int], float], seconds: float = ENERGY_SECONDS) -> float | None:
    """Joules per call used by the processor packages, including idle power; ``None`` if not available.

    Counters: RAPL (Intel SDM volume 3, 15.10), exposed by Linux under powercap. They often need root.
    """
    before = _energy_uj()
    if not before:
        return None
    runs = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        call(runs)
        runs += 1
    after = _energy_uj()
    total = 0
    for domain, first in before.items():
        last = after.get(domain)
        if last is None:
            return None
        if last < first:  # the counter wrapped around
            last += int(read_text(domain / "max_energy_range_uj") or 0)
        total += last - first
    return total / 1e6 / runs


def read_text(path: Path) -> str | None:
    """The text of a system file, ``None`` if it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip("\0 \n")
    except OSError:
        return None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # not available on every system
        return None


def _ticks() -> tuple[int, int] | None:
    """Busy and stolen ticks of all cores since the machine started."""
    fields = (read_text(PROC / "stat") or "").split("\n")[0].split()
    if len(fields) < 2 + STEAL_FIELD or fields[0] != "cpu":
        return None
    counts = [int(field) for field in fields[1:]]
    return sum(counts[index] for index in BUSY_FIELDS), counts[STEAL_FIELD]


def _frequency_mhz() -> float | None:
    khz = _numbers(SYS / "devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
    if khz:
        return round(max(khz) / 1e3, 1)
    clocks = []
    for line in (read_text(PROC / "cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "cpu MHz":
            clocks.append(float(value))
    return round(max(clocks), 1) if clocks else None


def _temperature_c() -> float | None:
    # Some sensors report 0 or absurd values when they are off.
    readings = _numbers(SYS / "class/thermal", "thermal_zone*/temp")
    plausible = [value / 1e3 for value in readings if 0 < value < 150e3]
    return round(max(plausible), 1) if plausible else None


def _throttled() -> bool | None:
    mask = read_text(SYS / "devices/platform/soc/soc:firmware/get_throttled")
    try:
        # The low bits are current: under-voltage, frequency capped, throttled, soft temperature limit.
        return bool(int(mask, 16) & 0xF) if mask else None
    except ValueError:
        return None


def _energy_uj() -> dict[Path, int]:
    """Energy counters of the processor packages, in microjoules; they include subdomains such as cores."""
    counters = {}
    for domain in sorted((SYS / "class/powercap").glob("intel-rapl:*")):
        text = read_text(domain / "energy_uj")
        if text and text.isdigit() and (read_text(domain / "name") or "").startswith("package"):
            counters[domain] = int(text)
    return counters


def _numbers(folder: Path, pattern: str) -> list[int]:
    numbers = []
    for path in folder.glob(pattern):
        text = read_text(path)
        if text is not None and text.lstrip("-").isdigit():
            numbers.append(int(text))
    return numbers
