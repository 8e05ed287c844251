"""What two model files have in common when their bytes differ: the same graph, with the same tensors.

A graph's digest is that of its outputs, each told by the operator that makes it, its options and the
digests of what goes in, down to inputs and constants. So names, numbers and the order of independent
operators do not matter, and every weight, shape, type and option does.

- TFLite, ONNX: as said; see `edgeopt.formats.onnx.files.semantics` for what is left out.
- TorchScript: the members of the archive, without times, its name, its serial number and debug records.
- ExecuTorch: every byte, since what a delegate compiled cannot be told apart.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Final

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files.semantics import Graph, digest, of_onnx, of_tflite
from edgeopt.formats.wire import bounded
from edgeopt.model import CHUNK, file_digest

_GRAPHS: Final = {"tflite": of_tflite, "onnx": of_onnx}
_NOISE: Final = (".data/serialization_id", ".data/version", ".debug_pkl", "mobile_debug_handles.pkl")


def semantic_digest(path: Path, format: str) -> str:
    """sha256 of what a file computes; equal for files that are the same but for noise.

    Args:
        path: the model file.
        format: ``tflite``, ``onnx``, ``torchscript`` or ``executorch``.

    Raises:
        StageError: the file is damaged.
        MissingPackageError: reading it needs a package that is not installed.
    """
    if format in _GRAPHS:
        return digest(format, *(_graph_digest(graph, {}) for graph in _GRAPHS[format](path)))
    if format == "torchscript":
        return digest(format, *sorted(_members(path).items()))
    return file_digest(path)


def first_difference(before: Path, after: Path, format: str) -> str:
    """The first part in which two files differ, in words; nothing if there is none to be told.

    Raises:
        StageError, MissingPackageError: as `semantic_digest`.
    """
    if format in _GRAPHS:
        old, new = (_GRAPHS[format](path) for path in (before, after))
        if len(old) != len(new):
            return f"{len(new)} graphs instead of {len(old)}"
        return next((told for graphs in zip(old, new, strict=True) for told in _differences(*graphs)), "")
    if format == "torchscript":
        old_members, new_members = _members(before), _members(after)
        names = sorted(old_members.keys() | new_members.keys())
        return next((f"member {n}" for n in names if old_members.get(n) != new_members.get(n)), "")
    return _first_byte(before, after)


def _graph_digest(graph: Graph, around: Mapping[Hashable, str]) -> str:
    known = {**around, **graph.constants}
    for index, key in enumerate(graph.inputs):
        known[key] = digest("input", index, graph.facts.get(key))
    made = []
    for node in graph.nodes:
        # What nobody has made yet is the state of a variable.
        inputs = [key if key is None else known.get(key, graph.facts.get(key)) for key in node.inputs]
        bodies = [_graph_digest(body, known) for body in node.bodies]
        outputs = [graph.facts.get(key) for key in node.outputs]
        made.append(digest(node.kind, node.options, *inputs, "gives", *outputs, "within", *bodies))
        for index, key in enumerate(node.outputs):
            known[key] = digest(made[-1], index)
    ends = [(known.get(key), graph.facts.get(key)) for key in graph.outputs]
    # Operators that lead to no output may have an effect all the same.
    return digest(graph.versions, len(graph.inputs), *ends, *sorted(made))


def _differences(old: Graph, new: Graph) -> Iterator[str]:
    """What differs between two graphs, operator by operator in the order of the files."""
    if old.versions != new.versions:
        yield "the versions of the operator sets"
    for number, (before, after) in enumerate(zip(old.nodes, new.nodes, strict=False)):
        where = f"operator {number} ({before.kind})"
        if before.kind != after.kind:
            yield f"{where} is {after.kind}"
        if before.options != after.options or len(before.inputs) != len(after.inputs):
            yield f"the options of {where}"
        for index, (a, b) in enumerate(zip(before.inputs, after.inputs, strict=False)):
            if old.constants.get(a) != new.constants.get(b):
                yield f"the constant input {index} of {where}"
            elif old.facts.get(a) != new.facts.get(b):
                yield f"the type, shape or quantization of input {index} of {where}"
        for a, b in zip(before.outputs, after.outputs, strict=False):
            if old.facts.get(a) != new.facts.get(b):
                yield f"the type, shape or quantization of the output of {where}"
        for bodies in zip(before.bodies, after.bodies, strict=False):
            yield from (f"{told} within {where}" for told in _differences(*bodies))
    if len(old.nodes) != len(new.nodes):
        yield f"{len(new.nodes)} operators instead of {len(old.nodes)}"
    elif _graph_digest(old, {}) != _graph_digest(new, {}):
        yield "how operators are connected"


def _members(path: Path) -> dict[str, str]:
    """The digests of an archive's members, by their names without the archive's own."""
    found: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in bounded.member_names(archive):
                inner = name.partition("/")[2] or name
                if not inner.endswith(_NOISE):
                    content = hashlib.sha256()
                    with archive.open(name) as member:
                        while piece := member.read(CHUNK):
                            content.update(piece)
                    found[inner] = content.hexdigest()
    except (*bounded.MALFORMED, zlib.error) as error:
        raise StageError(f"{path.name} is damaged: {error}", fix="fetch or export the file again") from error
    return found


def _first_byte(before: Path, after: Path) -> str:
    place = 0
    with before.open("rb") as old, after.open("rb") as new:
        while (a := old.read(CHUNK)) == (b := new.read(CHUNK)):
            if not a:
                return ""
            place += len(a)
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"byte {place + same:,} of {before.stat().st_size:,}"
