"""Runs a stage and reports what it writes outside its folders, by the audit events of Python (PEP 578)."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeopt.config.files import files_of
from edgeopt.model import Model
from edgeopt.plugin import Stage
from edgeopt.run.executors.executor import Say
from edgeopt.run.executors.worker import StageInputs, run_stage

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = ("/dev/", "/proc/", "/sys/")
FOLDER_EVENTS = {
    "os.link": (1, 3),
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rename": (1, 3),
    "os.rmdir": (0, 1),
    "os.symlink": (1, 2),
}
"""Audit events that change a folder, with the indices of their path and directory descriptor arguments."""
TENSORFLOW = "__autograph_generated"
"""Name prefix of temporary files that TensorFlow removes at process exit."""
_watchers: list[Callable[[str], None]] = []
_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []


def run_watched(
    say: Say, stage: Stage, model: Model, inputs: StageInputs, work: Path
) -> tuple[Model, list[str]]:
    """Run a stage and record every path that Python code writes outside the permitted folders."""
    temporary = work / "tmp"
    temporary.mkdir()
    allowed = [work / "result", temporary, *([inputs.checkpoints] if inputs.checkpoints else [])]
    environment, tempdir = dict(os.environ), tempfile.tempdir
    source = _state(model.path)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    try:
        with _writes(allowed) as outside:
            result = run_stage(say, stage, model, inputs, work / "result")
    finally:
        tempfile.tempdir = tempdir
        os.environ.clear()
        os.environ.update(environment)
    if _state(model.path) != source:
        outside.append(f"{model.path} (its input)")
    left = [path for path in files_of(temporary) if not path.name.startswith(TENSORFLOW)]
    outside += [f"{path} (left behind)" for path in left]
    return result.model, outside


def _state(path: Path) -> list[tuple[str, int, int]]:
    stats = [(str(file), file.stat()) for file in files_of(path)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


@contextmanager
def _writes(allowed: list[Path]) -> Iterator[list[str]]:
    """Collect the paths that Python code writes outside the allowed folders."""
    folders = tuple(str(path.resolve()) for path in allowed)
    written: list[str] = []

    def record(path: str) -> None:
        resolved = os.path.realpath(path)
        if resolved.startswith(HARMLESS) or "__pycache__" in resolved or path in written:
            return
        if not any(resolved == folder or resolved.startswith(folder + os.sep) for folder in folders):
            written.append(path)

    if not _hooks:  # one for the whole process: audit hooks cannot be removed
        _hooks.append(_hook)
        sys.addaudithook(_hook)
    _watchers.append(record)
    try:
        yield written
    finally:
        _watchers.remove(record)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watchers:
        return
    path: object = None
    folder = ""
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
        path = args[0]
    elif event in FOLDER_EVENTS:
        place, number = FOLDER_EVENTS[event]
        path = args[place]
        folder = os.readlink(f"/proc/self/fd/{args[number]}") if args[number] >= 0 else ""
    if isinstance(path, bytes | str | os.PathLike):
        for record in _watchers:
            record(os.path.join(folder, os.fsdecode(path)))
