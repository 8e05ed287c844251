"""What torch.export cannot trace, told by the line of the user's code and a way out."""

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeopt.errors import StageError, shortened
from edgeopt.formats.torch.graph.graph_editor import LINE
from edgeopt.formats.torch.lab.engine import brief

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph

SCRIPT_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\w+)')
"""A line of code in a traceback, also of the TorchScript interpreter."""
TRACE_LINE = re.compile(SCRIPT_LINE.pattern + r"\n *(?P<code>.*)")
"""The same in the stack trace of a node, with the code."""
LIBRARIES = ("site-packages", "dist-packages")
NO_MODELS = ("torch", "torchao", "pebble", "numpy", "keras", "optree", "edgeopt")
"""Installed packages that run or trace a model, and define none."""
SHOWN = 3

BRANCH = (
    "compute both sides and choose with torch.where(condition, a, b), or use torch.cond; keep single values "
    "as tensors, without .item(), int() or float(); put checks behind: if not torch.compiler.is_exporting()"
)
SIZE = "use a fixed number in the place of a size or index that is computed from values"
NUMPY = "use the functions of torch in the place of NumPy's: torch.export does not see those"
INDEX = (
    "torch.where(condition, a, b) with three arguments keeps the size fixed, in the place of a boolean "
    "index, nonzero, unique or torch.where with one argument"
)
SUPPRESSION = (
    "return boxes and scores of all candidates, and leave the suppression to a decoder, which runs behind "
    "the model: 'postprocess' in the recipe"
)
OTHER = "rewrite that line; torch.export.draft_export reports every occurrence"
WAYS_OUT = (
    ("specialized integer", "a size depends on values of tensors", SIZE),
    ("ata-dependent", "what it does depends on values of tensors", BRANCH),
    ("data dependent", "what it does depends on values of tensors", BRANCH),
    ("bool(", "what it does depends on values of tensors", BRANCH),
    (".numpy()", "it converts tensors to NumPy arrays", NUMPY),
    ("numpy", "it converts tensors to NumPy arrays", NUMPY),
)
"""Parts of messages of torch.export, what they mean, and the way out."""


class Line(NamedTuple):
    """A line of the user's code."""

    file: str
    number: int
    function: str
    code: str | None = None
    """What the line says; otherwise read from the file."""

    def __str__(self) -> str:
        return f"{Path(self.file).name}, line {self.number}, in {self.function}{self._shown()}"

    def without_number(self) -> str:
        """The same after an edit elsewhere in the file."""
        return f"{Path(self.file).name}, in {self.function}{self._shown()}"

    def _shown(self) -> str:
        code = linecache.getline(self.file, self.number) if self.code is None else self.code
        code = code.strip()
        return f": {shortened(code, 80)}" if code else ""


def untraceable(error: BaseException) -> StageError:
    """The error for a module that torch.export cannot trace."""
    text = str(error)
    line = _line_of(error)
    meaning, fix = next(
        ((meaning, fix) for part, meaning, fix in WAYS_OUT if part in text), ("", OTHER if line else "")
    )
    if line is None:
        return StageError(
            f"torch.export cannot trace the model: {brief(error)}",
            fix=fix
            or "remove data-dependent control flow from forward(); torch.export.draft_export reports "
            "every occurrence",
        )
    return StageError(f"torch.export cannot trace {line}\n  {meaning or brief(error, 2)}", fix=fix)


def keep_lines(graph: "Graph") -> None:
    """Replace the stack trace of every node by the line of the user's code in it, without number and path.

    In programs that edgeopt wrote, that line is the whole trace. No file is read: programs are from anyone.
    """
    for node in graph.nodes:
        trace = str(node.meta.pop("stack_trace", None) or "")
        calls = [
            Line(found["file"], int(found["line"]), found["function"], found["code"])
            for found in TRACE_LINE.finditer(trace)
        ]
        if line := _innermost(calls):
            node.meta[LINE] = line.without_number()
        elif trace and not calls:
            node.meta[LINE] = shortened(trace, 200)


def variable_sizes(program: "ExportedProgram") -> dict[str, str]:
    """The lines of user code whose result has a size, or is a Python number, that depends on values.

    Returns:
        The operator of each line.
    """
    lines: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.meta.get("unbacked_bindings"):
            calls = [Line(*call) for call in _calls(str(node.meta.get("stack_trace") or ""))]
            own = [line for line in calls if _is_of_user(line.file)]
            lines[str(own[-1] if own else node.target)] = str(node.target)
    return lines


def variable_outputs(program: "ExportedProgram", names: Sequence[str]) -> list[str]:
    """Those outputs, of all in order, whose shape depends on values."""
    shapes = {node.name: getattr(node.meta.get("val"), "shape", ()) for node in program.graph.nodes}
    return [
        name
        for name, output in zip(names, program.graph_signature.user_outputs, strict=True)
        if not all(isinstance(size, int) for size in shapes.get(str(output), ()))
    ]


def variable(subject: str, lines: Mapping[str, str]) -> StageError:
    """The error for outputs of variable size; its text is also the note on such values inside the model."""
    more = f" and {len(lines) - SHOWN} more lines" if len(lines) > SHOWN else ""
    return StageError(
        f"the size of {subject} depends on the data, which TFLite and other formats of fixed sizes cannot "
        f"hold: {'; '.join(list(lines)[:SHOWN])}{more}",
        fix=SUPPRESSION if any("nms" in operator for operator in lines.values()) else INDEX,
    )


def script_line(error: BaseException) -> str:
    """The last line of code in a message of the TorchScript interpreter, and the reason after it; or ''."""
    calls = [Line(*call) for call in _calls(str(error))]
    reason = str(error).strip().splitlines()[-1:]
    return f"{calls[-1]}\n  {reason[0]}" if calls else ""


def _calls(text: str) -> Iterator[tuple[str, int, str]]:
    for match in SCRIPT_LINE.finditer(text):
        yield match["file"], int(match["line"]), match["function"]


def _line_of(error: BaseException) -> Line | None:
    """The innermost line of the user's code, or else of a library of models, that raised an error."""
    lines: list[Line] = []
    cause: BaseException | None = error
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        lines += [Line(frame.filename, frame.lineno or 0, frame.name) for frame in frames]
        cause = cause.__cause__ or cause.__context__
    quoted = [Line(*call) for call in _calls(str(error))]
    own = [line for line in lines if _is_of_user(line.file)]
    own = own or [line for line in quoted if _is_of_user(line.file)]
    return own[-1] if own else _innermost(lines)


def _innermost(lines: Sequence[Line]) -> Line | None:
    """The innermost of some lines that is the user's, or else of a library of models."""
    own = [line for line in lines if _is_of_user(line.file)]
    found = own or [line for line in lines if _is_of_library(line.file)]
    return found[-1] if found else None


def _is_of_user(file: str) -> bool:
    parts = Path(file).parts
    ours = (Path(__file__).parents[3], Path(sysconfig.get_path("stdlib")))
    return file.endswith(".py") and not set(LIBRARIES) & set(parts) and not _inside(file, *ours)


def _is_of_library(file: str) -> bool:
    """Whether a file belongs to an installed library that may define models."""
    parts = Path(file).parts
    place = next((index for index, part in enumerate(parts) if part in LIBRARIES), None)
    return place is not None and parts[place + 1] not in NO_MODELS


def _inside(file: str, *folders: Path) -> bool:
    return any(folder in Path(file).parents for folder in folders)
