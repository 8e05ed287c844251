"""What runs inside a worker process: a task, with everything that it prints kept in a log."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import EdgeoptError
from edgeopt.formats.known import formats
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Model
from edgeopt.plugin import Context, Feed, SizeBreakdown, Stage, Trial, Worker
from edgeopt.results import Breakdown, LayerBytes
from edgeopt.run.executors.executor import Say

BREAKDOWN = "breakdown.json"
"""Beside a finished file: where its bytes go."""
FAILURE_LETTERS = 4000
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
    # ONNX Runtime otherwise reports every session to its maker, and leaves a file among the temporary ones.
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", PYTHONHASHSEED="0", ORT_DISABLE_TELEMETRY="1")
    # The pool ends its workers with this signal, often while the interpreter is already leaving. A handler
    # written in Python (pebble sets one) would then be found missing, and a traceback printed to the user.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class Returned(NamedTuple):
    """What a task returned, or the one line that says why it did not."""

    value: Any
    failure: str = ""
    expected: bool = True
    """Whether the failure is explained; the task's last words help with one that is not."""


def work(stem: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> Returned:
    """Call ``function(say, *args)``; whatever it raises comes back as text.

    Three files are left for whoever watches: ``stem.pid`` (process, and when it started by the monotonic
    clock, which all processes of a machine share), ``stem.log`` (all that was printed) and
    ``stem.progress`` (one line per call of ``say``).
    """
    stem.with_suffix(".pid").write_text(f"{os.getpid()} {time.monotonic()}")
    with (
        _captured(stem.with_suffix(".log")),
        stem.with_suffix(".progress").open("w", encoding="utf-8") as file,
    ):

        def say(message: str) -> None:
            file.write(" ".join(message.split()) + "\n")
            file.flush()

        try:
            return Returned(function(say, *args))
        except EdgeoptError as error:
            return Returned(None, _bounded(str(error)))
        except SystemExit as error:
            return Returned(None, _bounded(f"it left its process with exit code {error.code}"), False)
        except BaseException as error:  # noqa: BLE001 - the one place where a task's failure becomes a result
            return Returned(None, _bounded(f"{type(error).__name__}: {error}"), False)


def _bounded(text: str) -> str:
    """A message of at most ``FAILURE_LETTERS``, which can be written in any encoding of Unicode."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= FAILURE_LETTERS else text[:FAILURE_LETTERS] + " …"


class StageInputs(NamedTuple):
    """What a stage is given beside the model and an empty folder."""

    calibration: Feed | None = None
    training: Feed | None = None
    validation: Feed | None = None
    source: Model | None = None
    checkpoints: Path | None = None


class StageResult(NamedTuple):
    """What a stage made, noted and tried."""

    model: Model
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    arithmetic: dict[str, float]


def run_stage(say: Say, stage: Stage, model: Model, inputs: StageInputs, folder: Path) -> StageResult:
    """Run one stage on one model; every file of the result lies below ``folder``."""
    notes: list[str] = []
    trials: list[Trial] = []
    context = Context(folder=folder, progress=say, note=notes.append, trial=trials.append, **inputs._asdict())
    made = stage.run(model, context)
    # Here and not where the report is made, which imports no framework.
    found = _measured(made)
    if found is not None:
        # Kept beside the file: whoever finds it in the store finds this as well.
        (folder / BREAKDOWN).write_text(breakdown(found).model_dump_json(), "utf-8")
    return StageResult(made, tuple(notes), tuple(trials), arithmetic(found) if found is not None else {})


def _measured(model: Model) -> SizeBreakdown | None:
    """Where the bytes of an artifact go; None where it does not tell, and for a step on the way."""
    kind = formats().get(model.format)
    try:
        return kind.breakdown(model.path) if kind is not None and kind.artifact else None
    except (EdgeoptError, *MALFORMED):
        return None


def arithmetic(found: SizeBreakdown) -> dict[str, float]:
    """MACs, parameters and sparsity, where the file tells."""
    values = {"macs": found.macs, "parameters": found.parameters, "sparsity": found.sparsity}
    return {name: value for name, value in values.items() if value is not None}


def breakdown(found: SizeBreakdown) -> Breakdown:
    """Where the bytes go: by part, and the operators with the most."""
    weighted = sorted(
        (each for each in found.layers if each.weight_bytes), key=lambda each: -each.weight_bytes
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
    return Breakdown(parts=found.parts, layers=tuple(layers))


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
