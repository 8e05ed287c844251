"""Jobs on several machines at the same time: a queue for each, in a thread of its own."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import psutil

from edgeopt.devices.descendants import end_descendants, family, resource_tracker_here

END_SECONDS = 5.0
"""Time for the running jobs to end after an interruption, as they clean up."""
POLL_SECONDS = 0.1


def run_queues(queues: Sequence[Iterable[Callable[[], object]]]) -> None:
    """Run the jobs of each queue in order, and the queues in parallel; returns when all have ended.

    A single queue is run by the calling thread. If a job raises, no queue starts another one, and the first
    error is raised once the running jobs have ended. If the calling thread is interrupted, the processes
    that running jobs have started are ended.
    """
    if len(queues) == 1:
        for job in queues[0]:
            job()
        return
    stopped = threading.Event()
    errors: list[BaseException] = []

    def work(queue: Iterable[Callable[[], object]]) -> None:
        try:
            for job in queue:
                if stopped.is_set():
                    return
                job()
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            errors.append(error)
            stopped.set()

    others = family(psutil.Process())
    # Daemons: a device that does not answer must not keep an interrupted command alive.
    threads = [threading.Thread(target=work, args=(queue,), daemon=True) for queue in queues]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stopped.set()
        end_jobs(lambda: any(thread.is_alive() for thread in threads), others)
        raise
    if errors:
        raise errors[0]


def end_jobs(running: Callable[[], bool], others: Collection[psutil.Process]) -> None:
    """End what running jobs have started, until no job is ``running``, for a few seconds.

    ``others``: the descendants that this process had before, as the workers of a program that uses edgeopt.
    """
    deadline = time.monotonic() + END_SECONDS
    while running() and time.monotonic() < deadline:
        end_descendants(psutil.Process(), spared={*others, *resource_tracker_here()})
        time.sleep(POLL_SECONDS)
