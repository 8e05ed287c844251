"""What runs inside a worker process: one stage on one model, with everything it prints kept in a log."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.model import Model
from edgeopt.plugin import Context, Feed, Stage, Worker

ENVIRONMENT: dict[Worker, dict[str, str]] = {
    "tensorflow": {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "tensorflow"},
    "torch": {"KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "2"},
    "plain": {},
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


def carry_out(stage: Stage, model: Model, calibration: Feed | None, folder: Path, job: Path) -> Model:
    """Run one stage; ``job`` is the file stem beside which the process id and the log are left."""
    job.with_suffix(".pid").write_text(str(os.getpid()))
    with _captured(job.with_suffix(".log")):
        return stage.run(model, Context(folder, calibration, _say))


def _say(message: str) -> None:
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


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
