"""Models of which nothing is timed, run beside the stages that build the others."""

from collections.abc import Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Self

import psutil

from edgeopt.devices.descendants import family
from edgeopt.run.measuring.bench import Bench, Untimed
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.queues import end_jobs
from edgeopt.run.measuring.samples import Evaluation


class Beside:
    """A context manager; an error that leaves its block ends what still runs."""

    def __init__(self, bench: Bench, evaluation: Evaluation) -> None:
        """``bench``: of this machine, opened or not."""
        self._given, self._evaluation = bench, evaluation
        self._threads = ThreadPoolExecutor(max_workers=1)  # the stages need processors, too
        self._jobs: dict[Hashable, Future[Outcome]] = {}
        self._others = family(psutil.Process())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if kind is not None:
            end_jobs(lambda: any(each.running() for each in self._jobs.values()), self._others)

    def add(self, jobs: Mapping[Hashable, Untimed]) -> None:
        """Queue those that were not before; each is known by its key."""
        for key, job in jobs.items():
            if key not in self._jobs:
                self._jobs[key] = self._threads.submit(self._run, job)

    def begun(self) -> dict[Hashable, Future[Outcome]]:
        """Those that run or have run; all others are taken out of the queue."""
        return {key: job for key, job in self._jobs.items() if not job.cancel()}

    def _run(self, job: Untimed) -> Outcome:
        return self._bench.run(job.model, self._evaluation, limit=job.limit, options=job.options)

    @cached_property
    def _bench(self) -> Bench:
        # Without a lock; and the load that the machine has beside the stages is not that of the measurements.
        return replace(self._given, shared=True).open()
