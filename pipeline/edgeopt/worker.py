"""What runs inside a worker process: one stage on one model, with everything it prints kept in a log."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import EdgeoptError
from edgeopt.formats.inspection import inspect
from edgeopt.model import SUFFIXES, Model
from edgeopt.plugin import Context, Feed, Stage, Trial, Worker

ENVIRONMENT: dict[Worker, dict[str, str]] = {
    "tensorflow": {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"},
    # Threads that spin while they wait cost several times what they bring on a busy machine.
    "torch": {"KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "plain": {"OPENBLAS_NUM_THREADS": "1"},  # its threads wait for each other on a busy machine
}
"""Set before anything is imported: one warm worker per framework, so they never meet."""


def prepare(worker: Worker, parent: int) -> None:
    """Set the worker's environment, and make sure that it does not outlive its parent."""
    os.environ.update(ENVIRONMENT[worker])
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", PYTHONHASHSEED="0")
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class Supplies(NamedTuple):
    """What a stage is given beside the model and an empty folder."""

    calibration: Feed | None = None
    training: Feed | None = None
    validation: Feed | None = None
    source: Model | None = None
    checkpoints: Path | None = None


class Finished(NamedTuple):
    """What a stage made, remarked and tried."""

    model: Model
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    arithmetic: dict[str, float]


def carry_out(stage: Stage, model: Model, supplies: Supplies, folder: Path, job: Path) -> Finished:
    """Run one stage; ``job`` is the file stem beside which process id, log and progress are left."""
    job.with_suffix(".pid").write_text(str(os.getpid()))
    notes: list[str] = []
    trials: list[Trial] = []
    with _captured(job.with_suffix(".log")), job.with_suffix(".progress").open("w", encoding="utf-8") as file:

        def say(message: str) -> None:
            file.write(" ".join(message.split()) + "\n")
            file.flush()

        context = Context(
            folder=folder, progress=say, note=notes.append, trial=trials.append, **supplies._asdict()
        )
        made = stage.run(model, context)
        # Here and not where the report is made, which imports no framework.
        told = arithmetic(made) if made.format in SUFFIXES else {}
    return Finished(made, tuple(notes), tuple(trials), told)


def arithmetic(model: Model) -> dict[str, float]:
    """MACs, parameters and sparsity of a finished file; nothing for a format that does not tell."""
    try:
        found = inspect(model.path)
    except EdgeoptError:
        return {}
    values = {"macs": found.macs, "parameters": found.parameters, "sparsity": found.sparsity}
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to the log, so that native code's last words are kept as well."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
