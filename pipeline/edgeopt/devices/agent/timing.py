"""Timing: warm-up until steady, then interleaved runs, with the garbage collector off."""

from __future__ import annotations

import gc
import time
from statistics import median
from typing import Callable

WINDOW = 10
STEADY = 0.05
MAX_WARM_UP_CALLS = 500
MAX_WARM_UP_SHARE = 0.25


def warm_up(call: Callable[[int], float], max_seconds: float) -> int:
    """Call until the median of the last ten runs is within 5 % of that of the ten runs before.

    Stops after ``max_seconds`` or 500 calls at the latest. Returns the number of calls.
    """
    seconds: list[float] = []
    end = time.perf_counter() + max_seconds
    while len(seconds) < MAX_WARM_UP_CALLS:
        seconds.append(call(len(seconds)))
        if len(seconds) >= 2 * WINDOW:
            last, before = median(seconds[-WINDOW:]), median(seconds[-2 * WINDOW : -WINDOW])
            if abs(last - before) <= STEADY * before:
                break
        if time.perf_counter() >= end:
            break
    return len(seconds)


def take_turns(
    calls: list[Callable[[int], float]],
    min_runs: int,
    min_seconds: float,
    max_seconds: float,
    warm: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Seconds of each run of each call, interleaved A B A B so that machine drift affects all alike.

    Stops after at least ``min_runs`` rounds *and* ``min_seconds``, or after ``max_seconds``.
    ``call(index)`` runs once on sample ``index`` and returns its own seconds. ``warm()`` is called after
    the warm-up, right before the first round.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for call in calls:
            warm_up(call, max_seconds * MAX_WARM_UP_SHARE)
        results: list[list[float]] = [[] for _ in calls]
        warm()
        start = time.perf_counter()
        index = 0
        while True:
            for call, seconds in zip(calls, results):
                seconds.append(call(index))
            index += 1
            elapsed = time.perf_counter() - start
            if elapsed >= max_seconds or (index >= min_runs and elapsed >= min_seconds):
                return results
    finally:
        if collecting:
            gc.enable()
