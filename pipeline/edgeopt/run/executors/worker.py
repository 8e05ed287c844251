"""The code of a worker process: runs a task and redirects its output to a log."""

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
"""The size breakdown of a model, stored next to it."""
MAX_FAILURE_CHARS = 4000
MAX_LAYERS = 200
"""Operators listed in a breakdown."""

ENVIRONMENT: dict[Worker, dict[str, str]] = {
    "tensorflow": {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"},
    # On a busy machine, threads that spin while waiting cost several times what they gain.
    "torch": {"KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "plain": {"OPENBLAS_NUM_THREADS": "1"},  # on a busy machine, its threads mostly wait for each other
}
"""Environment variables by framework, set before imports: each framework has its own process."""


def prepare(worker: Worker, parent: int) -> None:
    """Set the environment variables of the worker, and make it exit with its parent."""
    os.environ.update(ENVIRONMENT[worker])
    # Without the last one, ONNX Runtime sends usage data of every session and leaves a temporary file.
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", PYTHONHASHSEED="0", ORT_DISABLE_TELEMETRY="1")
    # The pool terminates its workers with this signal, often during interpreter shutdown. A Python handler
    # (pebble installs one) may be gone by then, and a traceback would be printed.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class TaskReturn(NamedTuple):
    """The return value of a task, or the reason of its failure in one line."""

    value: Any
    failure: str = ""
    expected: bool = True
    """Whether ``failure`` is self-explanatory; otherwise, the end of the log is shown with it."""


def run_task(stem: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> TaskReturn:
    """Call ``function(say, *args)``; an exception is returned as text.

    Writes three files for the parent process: ``stem.pid`` (process id and start time by the monotonic clock,
    which all processes share), ``stem.log`` (stdout and stderr) and ``stem.progress`` (one line per call of
    ``say``).
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
            return TaskReturn(function(say, *args))
        except EdgeoptError as error:
            return TaskReturn(None, _truncated(str(error)))
        except SystemExit as error:
            return TaskReturn(None, _truncated(f"it exited its process with exit code {error.code}"), False)
        except BaseException as error:  # noqa: BLE001 - the one place where a task's failure becomes a result
            return TaskReturn(None, _truncated(f"{type(error).__name__}: {error}"), False)


def _truncated(text: str) -> str:
    """A message of at most ``MAX_FAILURE_CHARS``, encodable as UTF-8."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_FAILURE_CHARS else text[:MAX_FAILURE_CHARS] + " …"


class StageInputs(NamedTuple):
    """The inputs of a stage other than the model and the folder."""

    calibration: Feed | None = None
    training: Feed | None = None
    validation: Feed | None = None
    source: Model | None = None
    checkpoints: Path | None = None


class StageResult(NamedTuple):
    """The results of a stage: the model, notes, trials of a search, and MACs, parameters and sparsity."""

    model: Model
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    arithmetic: dict[str, float]


def run_stage(say: Say, stage: Stage, model: Model, inputs: StageInputs, folder: Path) -> StageResult:
    """Run one stage on one model; it writes all files of the result below ``folder``."""
    notes: list[str] = []
    trials: list[Trial] = []
    context = Context(folder=folder, progress=say, note=notes.append, trial=trials.append, **inputs._asdict())
    result = stage.run(model, context)
    # Computed in the worker: the process that writes the report imports no framework.
    sizes = _size_breakdown(result)
    if sizes is not None:
        # Stored next to the model, so that a cached step has it, too.
        (folder / BREAKDOWN).write_text(breakdown(sizes).model_dump_json(), "utf-8")
    return StageResult(result, tuple(notes), tuple(trials), arithmetic(sizes) if sizes is not None else {})


def _size_breakdown(model: Model) -> SizeBreakdown | None:
    """The size breakdown of an artifact; None for an intermediate model or an unreadable file."""
    kind = formats().get(model.format)
    try:
        return kind.breakdown(model.path) if kind is not None and kind.artifact else None
    except (EdgeoptError, *MALFORMED):
        return None


def arithmetic(sizes: SizeBreakdown) -> dict[str, float]:
    """MACs, parameters and sparsity, as far as they are known."""
    values = {"macs": sizes.macs, "parameters": sizes.parameters, "sparsity": sizes.sparsity}
    return {name: value for name, value in values.items() if value is not None}


def breakdown(sizes: SizeBreakdown) -> Breakdown:
    """The size breakdown for the report: bytes by part, and the operators with the largest weights."""
    weighted = sorted(
        (each for each in sizes.layers if each.weight_bytes), key=lambda each: -each.weight_bytes
    )
    layers = (
        LayerBytes(
            # Converters concatenate the names of all fused operators: the first one identifies it.
            name=each.name.partition(";")[0],
            kind=each.kind,
            size_bytes=each.weight_bytes,
            macs=each.macs,
        )
        for each in weighted[:MAX_LAYERS]
    )
    return Breakdown(parts=sizes.parts, layers=tuple(layers))


@contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to the log, which captures the output of native code, too."""
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
