"""Refuses ``.pt2`` files that hold more than a network.

``torch.export.load`` is not made for files from strangers: an archive may hold pickled objects and
compiled libraries, which it loads, an operator may be any function below ``torch``, and names and symbolic
sizes become Python code. So an archive is looked through before torch gets to see it. Pickles of
plain tensors stay, such as the example inputs: these are read with ``weights_only``.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeopt.errors import StageError

CODE = re.compile(r"data/aotinductor/|data/executorch/|data/mtia/|data/constants/(opaque|custom)_obj")
"""Records with compiled libraries or objects: see torch/csrc/export/pt2_archive_constants.h."""

NAME = re.compile(r"[\w.@*/-]*")
"""Names become part of generated Python."""

OPERATOR = re.compile(
    r"torch\.ops(\.(?!__)\w+){2,3}"
    r"|torch\.ops\.aten\.__i?(and|or|xor|lshift|rshift)__(\.\w+)?"
    r"|torch\.sym_\w+"
    r"|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
"""Functions that compute."""

SYMBOL = re.compile(r"[suz]\w*\d")
ALGEBRA = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Max Min Mod Eq Ne Lt Le Gt Ge Piecewise True False "
    "StrictLessThan LessThan StrictGreaterThan GreaterThan Equality Unequality And Or Not "
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift "
    "PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToInt TruncToFloat ToFloat RoundToInt Identity "
    "integer real positive negative nonnegative nonpositive finite precision".split()
)
"""What may stand in the expression of a symbolic size, which sympy evaluates as Python."""

IMPORTS = ("__enum__", "default_factory")
"""What in the structure of inputs and outputs makes torch import a module."""


def refuse_code(path: Path) -> None:
    """Look through a ``.pt2`` archive.

    Raises:
        StageError: it holds objects, compiled code, or functions that are no operators.
        RuntimeError: it is not an archive that torch can read.
    """
    import torch

    # The reader that torch itself uses: another could be shown another content. It raises for files of
    # torch < 2.9, so that torch's own way of reading those, which is not looked at here, is never taken.
    reader = torch._C.PyTorchFileReader(str(path))
    records = list(reader.get_all_records())
    found = [name for name in records if CODE.search(name.lower())]
    if len({name.lower() for name in records}) < len(records):
        found.append("two records of one name")  # which of them is read differs
    for name in records:
        if name.lower().startswith("models/"):
            try:
                found += _suspicious(json.loads(reader.get_record(name)))
            except ValueError:
                found.append(f"{name}, which is not JSON")
    if found:
        raise StageError(
            f"{path} holds more than a network, and loading it could run anything: {found[0][:200]}",
            fix="export it again without custom objects and compiled parts, or give the model as "
            "factory and weights",
        )


def _suspicious(value: Any, key: str = "") -> Iterator[str]:
    """What in the JSON of a program is no plain operator, name or size."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _suspicious(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _suspicious(inner, key)
    elif isinstance(value, str) and not _plain(key, value):
        yield f"{key} {value!r}"


def _plain(key: str, text: str) -> bool:
    if key in ("target", "as_operator"):
        return OPERATOR.fullmatch(text) is not None
    if key == "expr_str":
        words = re.findall(r"[^\W\d]\w*", text)
        return "." not in re.sub(r"\d\.\d", "", text) and all(
            word in ALGEBRA or SYMBOL.fullmatch(word) for word in words
        )
    if key.endswith(("name", "names", "fqn")):
        return NAME.fullmatch(text) is not None
    return not any(word in text for word in IMPORTS)


@contextmanager
def weights_only() -> Iterator[None]:
    """Let torch load nothing but tensors, wherever its own code calls ``torch.load``."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
