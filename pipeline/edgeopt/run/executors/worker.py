"""The code of a worker process: runs a task and redirects its output to a log."""

import io
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from edgeopt.config import registry
from edgeopt.config.text import MAX_REASON_CHARS, printable, reason_of
from edgeopt.devices.descendants import end_descendants, end_with, lead_group
from edgeopt.errors import DeviceLostError, EdgeoptError, StageError, StoreError
from edgeopt.formats.file_graph import graph_of
from edgeopt.formats.known import formats, model_digest
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Model
from edgeopt.plugin import Context, Feed, Format, Judging, SizeBreakdown, Stage, Trial, Worker
from edgeopt.results import Breakdown, LayerBytes
from edgeopt.run.executors.executor import Say
from edgeopt.run.executors.gpus import NONE
from edgeopt.run.store import full_disk_explained

BREAKDOWN = "breakdown.json"
"""The size breakdown of a model, stored next to it."""
MAX_NOTE_CHARS = 1000
MAX_LAYERS = 200
"""Operators listed in a breakdown."""

ENVIRONMENT: dict[Worker, dict[str, str]] = {
    "tensorflow": {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"},
    # On a busy machine, threads that spin while waiting cost several times what they gain.
    "torch": {"KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "plain": {"OPENBLAS_NUM_THREADS": "1"},  # on a busy machine, its threads mostly wait for each other
}
"""Environment variables by framework, set before imports: each framework has its own process."""


def prepare(worker: Worker, parent: int, gpus: str | None = NONE) -> None:
    """Set the environment variables of the worker, and make it exit with its parent.

    ``gpus``: those that it sees, as in ``CUDA_VISIBLE_DEVICES``; None: all.
    """
    os.environ.update(ENVIRONMENT[worker])
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    # Without the last one, ONNX Runtime sends usage data of every session and leaves a temporary file.
    os.environ.update(PYTHONHASHSEED="0", ORT_DISABLE_TELEMETRY="1")
    for stream in (sys.stdout, sys.stderr):
        # The encoding of the log: libraries print characters that the encoding of the terminal may lack.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # The pool terminates its workers with this signal, often during interpreter shutdown. A Python handler
    # (pebble installs one) may be gone by then, and a traceback would be printed.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lead_group()
    end_with(parent)


class TaskReturn(NamedTuple):
    """The pickled return value of a task, or the reason of its failure in one line."""

    value: bytes = b""
    failure: str = ""
    expected: bool = True
    """Whether ``failure`` is self-explanatory; otherwise, the end of the log is shown with it."""
    lost: bool = False
    """Whether the store or a device is the reason; see `TaskResult`."""


def run_task(stem: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> TaskReturn:
    """Call ``function(say, *args)``; an exception is returned as text. Ends all processes that it started.

    Writes three files for the parent process: ``stem.pid`` (process id and start time by the monotonic clock,
    which all processes share), ``stem.log`` (stdout and stderr) and ``stem.progress`` (one line per call of
    ``say``).
    """
    worker = os.getpid()
    stem.with_suffix(".pid").write_text(f"{worker} {time.monotonic()}")
    with (
        _captured(stem.with_suffix(".log")),
        stem.with_suffix(".progress").open("w", encoding="utf-8") as file,
    ):

        def say(message: str) -> None:
            file.write(printable(" ".join(message.split()), MAX_NOTE_CHARS) + "\n")
            file.flush()

        done = _call(function, say, args)
        if os.getpid() != worker:
            os._exit(0)  # user code has forked, and its child has returned: only the worker may go on
    end_descendants(psutil.Process())
    return done


def _call(function: Callable[..., Any], say: Say, args: tuple[Any, ...]) -> TaskReturn:
    """Call a function; whatever it raises becomes text: the exception itself may not survive pickling."""
    try:
        return TaskReturn(pickle.dumps(function(say, *args)))
    except EdgeoptError as error:
        lost = isinstance(error, DeviceLostError | StoreError)
        return TaskReturn(failure=printable(str(error), MAX_REASON_CHARS), lost=lost)
    except BaseException as error:  # noqa: BLE001 - the one place where a task's failure becomes a result
        return TaskReturn(failure=reason_of(error), expected=False)


class StageInputs(NamedTuple):
    """The inputs of a stage other than the model and the folder."""

    calibration: Feed | None = None
    training: Feed | None = None
    validation: Feed | None = None
    source: Model | None = None
    judging: Judging = Judging()
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
    with full_disk_explained(folder.parent.parent):  # a scratch folder of a store
        result = stage.run(model, context)
    if not isinstance(result, Model):
        raise StageError(f"it returned {type(result).__name__}, not a Model")
    # Computed in the worker: the process that writes the report imports no framework.
    sizes = _size_breakdown(result)
    if sizes is not None:
        # Stored next to the model, so that a cached step has it, too.
        shown_sizes = breakdown(formats()[result.format], result.path, sizes)
        (folder / BREAKDOWN).write_text(shown_sizes.model_dump_json(), "utf-8")
    shown = tuple(printable(note, MAX_NOTE_CHARS) for note in notes)
    return StageResult(result, shown, tuple(trials), arithmetic(sizes) if sizes is not None else {})


def stage_entry(stage: Stage, result: StageResult, folder: Path, seconds: float) -> dict[str, Any]:
    """The metadata with which the result of a stage is stored; ``folder`` contains its files.

    Raises:
        StageError: the stage has a bug; a later stage would fail with a misleading error.
    """
    model = result.model
    if model.format != stage.produces:
        raise StageError(f"it declares format {stage.produces}, but returned {model.format}")
    if not model.path.exists() or folder.resolve() not in model.path.resolve().parents:
        raise StageError(f"it returned {model.path}, which is not a file below context.folder")
    if not model.inputs:
        raise StageError("it returned a model that does not declare its inputs")
    return {
        "stage": registry.plugin_name(stage),
        "seconds": round(seconds, 3),
        "digest": model_digest(model),
        "model": model.model_dump(mode="json", exclude={"code"})
        | {"path": model.path.relative_to(folder).as_posix()},
        "arithmetic": result.arithmetic,
        "notes": list(result.notes),
        "trials": [trial.model_dump(mode="json") for trial in result.trials],
    }


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


def breakdown(kind: Format, path: Path, sizes: SizeBreakdown) -> Breakdown:
    """The size breakdown for the report: bytes by part, operators with the largest weights, and the graph."""
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
    return Breakdown(parts=sizes.parts, layers=tuple(layers), graph=graph_of(kind, path, sizes))


@contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to the log, which captures the output of native code, too."""
    _flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        _flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # user code has closed it
            stream.flush()
