"""Rejection of ``.pt2`` files that contain more than a network.

``torch.export.load`` is not safe for untrusted files: it loads the pickled objects and compiled libraries of
an archive, resolves an operator to any function below ``torch``, and turns names and symbolic sizes into
Python code. An archive is therefore scanned before torch loads it. Pickles of plain tensors, such as the
example inputs, are permitted: they are read with ``weights_only``.
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
"""Records with compiled libraries or pickled objects: see torch/csrc/export/pt2_archive_constants.h."""

NAME = re.compile(r"[\w.@*/-]*")
"""Permitted names: names become part of generated Python code."""

OPERATOR = re.compile(
    r"torch\.ops(\.(?!__)\w+){2,3}"
    r"|torch\.ops\.aten\.__i?(and|or|xor|lshift|rshift)__(\.\w+)?"
    r"|torch\.sym_\w+"
    r"|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
"""Permitted operator targets: functions without side effects."""

SYMBOL = re.compile(r"[suz]\w*\d")
ALGEBRA = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Max Min Mod Eq Ne Lt Le Gt Ge Piecewise True False "
    "StrictLessThan LessThan StrictGreaterThan GreaterThan Equality Unequality And Or Not "
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift "
    "PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToInt TruncToFloat ToFloat RoundToInt Identity "
    "integer real positive negative nonnegative nonpositive finite precision".split()
)
"""Permitted words in the expression of a symbolic size, which sympy evaluates as Python."""

IMPORTS = ("__enum__", "default_factory")
"""Keys in the pytree specs of inputs and outputs that make torch import a module."""


def refuse_code(path: Path) -> None:
    """Scan a ``.pt2`` archive without loading it.

    Raises:
        StageError: the archive contains objects, compiled code, or functions that are not operators.
        RuntimeError: the file is not an archive that torch can read.
    """
    import torch

    # torch's own reader: a crafted archive could present different contents to another zip reader. It also
    # raises for files of torch < 2.9, so torch never falls back to its older loader, which is not scanned.
    reader = torch._C.PyTorchFileReader(str(path))
    records = list(reader.get_all_records())
    # Lower case throughout: torch's reader looks records up without regard to case.
    suspicious = [name for name in records if CODE.search(name.lower())]
    if len({name.lower() for name in records}) < len(records):
        suspicious.append("two records of the same name")  # which one is read depends on the reader
    for name in records:
        if name.lower().startswith("models/"):
            try:
                suspicious += _suspicious(json.loads(reader.get_record(name)))
            except ValueError:
                suspicious.append(f"{name}, which is not JSON")
    if suspicious:
        raise StageError(
            f"{path} contains more than a network; loading it could run arbitrary code: "
            f"{suspicious[0][:200]}",
            fix="export it again without custom objects and compiled parts, or declare the model by "
            "factory and weights",
        )


def _suspicious(value: Any, key: str = "") -> Iterator[str]:
    """Values in the JSON of a program that are not a plain operator, name or size."""
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
        # No dots except in numbers: an attribute access could reach any Python object.
        words = re.findall(r"[^\W\d]\w*", text)
        return "." not in re.sub(r"\d\.\d", "", text) and all(
            word in ALGEBRA or SYMBOL.fullmatch(word) for word in words
        )
    if key.endswith(("name", "names", "fqn")):
        return NAME.fullmatch(text) is not None
    return not any(word in text for word in IMPORTS)


@contextmanager
def weights_only() -> Iterator[None]:
    """Restrict every ``torch.load`` call inside torch to tensors."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
