"""What loading or running a ``.pt2`` exported program or a TorchScript archive would run, write or read.

``torch.export.load`` is not safe for untrusted files: it loads the pickled objects and compiled libraries of
an archive, resolves an operator to any function below ``torch``, and turns names and symbolic sizes into
Python code. ``torch.jit.load`` constructs no Python objects, but runs ``__setstate__`` of the file, and both
kinds of graphs may contain operators that write and read files. Pickles of plain tensors, such as the example
inputs of a program, are permitted.
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .torch_operators import OUTSIDE, allowed
from .torch_pickles import most_informative, refused_inside

CODE = re.compile(r"data/aotinductor/|data/executorch/|data/mtia/|data/constants/(opaque|custom)_obj")
"""Records with compiled libraries or pickled objects: see torch/csrc/export/pt2_archive_constants.h."""

NAME = re.compile(r"[\w.@*/-]*")
"""Permitted names: names become part of generated Python code."""

FUNCTION = re.compile(
    r"torch\.sym_\w+"
    r"|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
"""Permitted targets that are not operators of torch: functions without side effects."""
TARGET = re.compile(
    r"torch\.ops\.(\w+)\.(?:((?!__)\w+)|(__i?(?:and|or|xor|lshift|rshift)__))(?:\.(?!__)\w+)?"
)

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

_WORD = re.compile(r"\b({})\b".format("|".join(sorted(OUTSIDE))))
_OPERATORS = re.compile(r"(?<![.\w])ops\b(?:\s*\.\s*(\w+)\s*\.\s*(\w+))?")
_HIDDEN = re.compile(r"getattr\s*\([^)]*\\")
_QUALIFIED = re.compile(r"(\w+)::(\w+)")

Reader = Callable[[str], bytes]


def findings(path: Path) -> list[str]:
    """Everything in an archive of torch that is more than a network.

    Raises:
        ValueError, KeyError, RuntimeError, zipfile.BadZipFile: the file is damaged.
    """
    with zipfile.ZipFile(str(path)) as archive:
        return _scan(archive.namelist(), archive.read)


def findings_for_torch(path: Path) -> list[str]:
    """The same, and also as torch reads it: a crafted archive can present other contents to another reader.

    Raises:
        RuntimeError: the file is not an archive that torch can read, such as a program of torch < 2.9.
        ValueError: a record is damaged.
    """
    import torch

    found = findings(path)
    if found:
        return found
    reader: Any = torch._C.PyTorchFileReader(str(path))
    names = list(reader.get_all_records())
    return _scan(names, lambda name: bytes(reader.get_record(name)))


def _scan(names: list[str], read: Reader) -> list[str]:
    # Lower case throughout: torch's reader looks records up without regard to case.
    found = [name for name in names if CODE.search(name.lower())]
    if len({name.lower() for name in names}) < len(names):
        found.append("two records of the same name")  # which one is read depends on the reader
    for name in names:
        # zipfile includes the archive's folder in names, torch's reader does not.
        parts = name.lower().split("/")
        if "data" in parts[:2] and parts[-1].endswith(".pt"):
            found += (f"{each} in {name}" for each in most_informative(refused_inside(read(name))))
        elif "data" in parts[:2] and parts[-1].endswith("_config.json"):
            for record in _pickled_records(name, read(name)):
                found += (f"{each} in {record}" for each in most_informative(refused_inside(read(record))))
        elif "models" in parts[:2]:
            found += _suspicious_json(name, read(name))
        elif "code" in parts[:2] and parts[-1].endswith(".py"):
            found += script_operators(read(name).decode("utf-8"))
        elif parts[-1] == "bytecode.pkl":
            found += bytecode_operators(read(name))
    return list(dict.fromkeys(found))


def _pickled_records(name: str, content: bytes) -> Iterator[str]:
    """The records of weights and constants that are pickled tensors, by their configuration."""
    entries = json.loads(content).get("config", {}).values()
    folder = name.rpartition("/")[0]
    return (f"{folder}/{entry['path_name']}" for entry in entries if entry.get("use_pickle"))


def script_operators(text: str) -> Iterator[str]:
    """Operators in serialized TorchScript that do more than compute."""
    # The words may not occur at all: operators can be called as functions of torch and as methods of tensors,
    # and torch can be assigned to another name.
    for word in _WORD.findall(text):
        yield f"the operator aten::{word}"
    for namespace, name in _OPERATORS.findall(text):
        if not allowed(namespace, name):
            yield f"the operator {namespace}::{name}" if namespace else "a use of 'ops' as a value"
    if _HIDDEN.search(text):
        yield "a name that is written with escapes"


def bytecode_operators(content: bytes) -> Iterator[str]:
    """Operators in the bytecode of a lite interpreter file that do more than compute."""
    for _, argument, _ in pickletools.genops(content):
        match = _QUALIFIED.fullmatch(argument) if isinstance(argument, str) else None
        if match and not allowed(match[1], match[2]):
            yield f"the operator {argument}"


def _suspicious_json(name: str, content: bytes) -> Iterator[str]:
    try:
        program = json.loads(content)
    except ValueError:
        yield f"{name}, which is not JSON"
        return
    # Iterative: a hostile file may nest deeper than Python's recursion limit.
    waiting = [("", program)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((key, inner) for inner in value)
        elif isinstance(value, str) and not _plain(key, value):
            yield f"{key} {value[:120]!r}"


def _plain(key: str, text: str) -> bool:
    if key in ("target", "as_operator"):
        match = TARGET.fullmatch(text)
        if match:
            return allowed(match[1], match[2] or match[3])
        return FUNCTION.fullmatch(text) is not None
    if key == "expr_str":
        # No dots except in numbers: an attribute access could reach any Python object.
        words = re.findall(r"[^\W\d]\w*", text)
        return "." not in re.sub(r"\d\.\d", "", text) and all(
            word in ALGEBRA or SYMBOL.fullmatch(word) for word in words
        )
    if key.endswith(("name", "names", "fqn")):
        return NAME.fullmatch(text) is not None
    return not any(word in text for word in IMPORTS)
