"""What the machine was doing while something was timed: clocks, heat, other programs, energy."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable

from edgeopt_agent.cuda import gpu_states

PROC = Path("/proc")
SYS = Path("/sys")
BUSY_FIELDS = (0, 1, 2, 5, 6)
"""Of the line ``cpu`` in /proc/stat: user, nice, system, irq, softirq. Ticks; guests are part of user."""
STEAL_FIELD = 7
ENERGY_SECONDS = 1.0


def conditions() -> dict[str, Any]:
    """The machine at this moment; ``None`` for what it does not tell.

    ``load``: mean number of running programs in the last minute. ``frequency_mhz``: of the fastest core.
    ``temperature_c``: of the hottest sensor. ``throttled``: what a Raspberry Pi says of itself.
    """
    return {
        "load": _load(),
        "governor": read_text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_mhz": _frequency_mhz(),
        "temperature_c": _temperature_c(),
        "throttled": _throttled(),
    }


class Watch:
    """Looks at the machine before and after a timed run; ``begin`` when all is warm, then ``end``.

    ``gpus``: look at the clocks of the GPUs as well.
    """

    def __init__(self, *, gpus: bool = False) -> None:
        self.gpus = gpus
        self.spells: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Start one spell of timing; there may be several."""
        self.before = self._now()
        self.ticks = _ticks()
        self.own = time.process_time()
        self.start = time.perf_counter()

    def end(self) -> None:
        """End the spell: how many cores' worth of time others took, and the machine afterwards."""
        seconds = time.perf_counter() - self.start
        own = time.process_time() - self.own
        ticks = _ticks()
        others = stolen = None
        if ticks is not None and self.ticks is not None and seconds > 0:
            per_second = os.sysconf("SC_CLK_TCK")
            busy, steal = ((now - then) / per_second for now, then in zip(ticks, self.ticks))
            others = round(max(0.0, busy - own) / seconds, 3)
            stolen = round(max(0.0, steal) / seconds, 3)
        self.spells.append(
            {
                "seconds": round(seconds, 3),
                "before": self.before,
                "after": self._now(),
                "cores": os.cpu_count(),
                "other_cores": others,
                "stolen_cores": stolen,
            }
        )

    def _now(self) -> dict[str, Any]:
        return {**conditions(), "gpus": gpu_states()} if self.gpus else conditions()


def energy_per_run(call: Callable[[int], float], seconds: float = ENERGY_SECONDS) -> float | None:
    """Joules that the processor packages take per call, idle power included; ``None`` where it is not told.

    Counters: RAPL (Intel SDM volume 3, 15.10) as Linux shows them under powercap. They often need root.
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
        if last < first:  # the counter began again
            last += int(read_text(domain / "max_energy_range_uj") or 0)
        total += last - first
    return total / 1e6 / runs


def read_text(path: Path) -> str | None:
    """The text of a file of the system, ``None`` if it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip("\0 \n")
    except OSError:
        return None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # not on every system
        return None


def _ticks() -> tuple[int, int] | None:
    """Busy and stolen ticks of all cores since the machine started."""
    fields = (read_text(PROC / "stat") or "").split("\n")[0].split()
    if len(fields) < 2 + STEAL_FIELD or fields[0] != "cpu":
        return None
    counts = [int(field) for field in fields[1:]]
    return sum(counts[index] for index in BUSY_FIELDS), counts[STEAL_FIELD]


def _frequency_mhz() -> float | None:
    found = _numbers(SYS / "devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
    if found:
        return round(max(found) / 1e3, 1)
    clocks = []
    for line in (read_text(PROC / "cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "cpu MHz":
            clocks.append(float(value))
    return round(max(clocks), 1) if clocks else None


def _temperature_c() -> float | None:
    found = _numbers(SYS / "class/thermal", "thermal_zone*/temp")
    sane = [value / 1e3 for value in found if 0 < value < 150e3]
    return round(max(sane), 1) if sane else None


def _throttled() -> bool | None:
    told = read_text(SYS / "devices/platform/soc/soc:firmware/get_throttled")
    try:
        # The low bits are the present: under-voltage, capped, throttled, soft temperature limit.
        return bool(int(told, 16) & 0xF) if told else None
    except ValueError:
        return None


def _energy_uj() -> dict[Path, int]:
    """Counters of the packages; subdomains such as cores are part of them."""
    found = {}
    for domain in sorted((SYS / "class/powercap").glob("intel-rapl:*")):
        told = read_text(domain / "energy_uj")
        if told and told.isdigit() and (read_text(domain / "name") or "").startswith("package"):
            found[domain] = int(told)
    return found


def _numbers(folder: Path, pattern: str) -> list[int]:
    found = []
    for path in folder.glob(pattern):
        text = read_text(path)
        if text is not None and text.lstrip("-").isdigit():
            found.append(int(text))
    return found
