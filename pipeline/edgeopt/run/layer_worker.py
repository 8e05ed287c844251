"""Compares two files in a process of its own, which a framework may take down."""

import concurrent.futures
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from edgeopt.errors import StageError
from edgeopt.evaluation.layer_comparison import Data, compare
from edgeopt.model import Model
from edgeopt.plugin import Worker
from edgeopt.results import Event
from edgeopt.run.executors.worker import prepare
from edgeopt.run.layer_statistics import Comparison

COMPARISON_MINUTES = 20.0


def compare_apart(
    worker: Worker,
    reference: Model,
    quantized: Model,
    data: Sequence[Data],
    samples: int,
    branch: str,
    watch: Callable[[Event], None],
) -> Comparison:
    """``compare`` in a process of its own.

    Raises:
        StageError: as `compare`, and when the process dies or takes too long.
    """
    watch(Event(branch=branch, step="compare layers", status="started"))
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        log = Path(scratch, "log")
        pool = ProcessPool(
            max_workers=1,
            context=multiprocessing.get_context("spawn"),
            initializer=prepare,
            initargs=(worker, os.getpid()),
        )
        try:
            future = pool.schedule(
                _quietly, args=(log, reference, quantized, data, samples), timeout=COMPARISON_MINUTES * 60
            )
            found: Comparison = future.result()
        except ProcessExpired as error:
            last = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
            raise StageError(
                f"comparing {branch} layer by layer took its process down (exit code {error.exitcode}): "
                + " ".join(last)
            ) from error
        except concurrent.futures.TimeoutError as error:
            raise StageError(
                f"comparing {branch} layer by layer was stopped after {COMPARISON_MINUTES:g} minutes",
                fix="compare on fewer samples: --samples 8",
            ) from error
        finally:
            pool.stop()
            pool.join()
    watch(Event(branch=branch, step="compare layers", status="done"))
    return found


def _quietly(log: Path, reference: Model, quantized: Model, data: Sequence[Data], samples: int) -> Comparison:
    """``compare``, with what native code says on stderr kept in a file."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return compare(reference, quantized, data, samples)
