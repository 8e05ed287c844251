"""What runs inside a worker process: one stage on one model, with everything it prints kept in a log."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgeopt.errors import EdgeoptError
from edgeopt.formats.arithmetic import Ledger
from edgeopt.formats.inspection import inspect
from edgeopt.model import SUFFIXES, Model
from edgeopt.plugin import Context, Feed, Stage, Trial, Worker
from edgeopt.results import Breakdown, LayerBytes

BREAKDOWN = "breakdown.json"
"""Beside a finished file: where its bytes go."""
LAYERS = 200
"""Operators whose weights are listed."""

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
    # The pool ends its workers with this signal, often while the interpreter is already leaving. A handler
    # written in Python (pebble sets one) would then be found missing, and a traceback printed to the user.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
        told = _inspected(made) if made.format in SUFFIXES else None
    if told is not None:
        # Kept beside the file: whoever finds it in the store finds this as well.
        (folder / BREAKDOWN).write_text(breakdown(told).model_dump_json(), "utf-8")
    return Finished(made, tuple(notes), tuple(trials), arithmetic(told) if told is not None else {})


def _inspected(model: Model) -> Ledger | None:
    """What a finished file is made of; None for one that does not tell."""
    try:
        return inspect(model.path)
    except EdgeoptError:
        return None


def arithmetic(ledger: Ledger) -> dict[str, float]:
    """MACs, parameters and sparsity, where the file tells."""
    values = {"macs": ledger.macs, "parameters": ledger.parameters, "sparsity": ledger.sparsity}
    return {name: value for name, value in values.items() if value is not None}


def breakdown(ledger: Ledger) -> Breakdown:
    """Where the bytes go: by part, and the operators with the most."""
    weighted = sorted(
        (each for each in ledger.layers if each.weight_bytes), key=lambda each: -each.weight_bytes
    )
    layers = (
        LayerBytes(
            # Converters name an operator after all that was fused into it.
            name=each.name.partition(";")[0],
            kind=each.kind,
            size_bytes=each.weight_bytes,
            macs=each.macs,
        )
        for each in weighted[:LAYERS]
    )
    return Breakdown(parts=ledger.parts, layers=tuple(layers))


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
