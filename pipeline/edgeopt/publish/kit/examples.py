"""Short programs that load a model, prepare samples, run it and check the golden vectors.

The Python programs run unchanged on the device; the C++ and Kotlin ones are for copying into a project.
The folder ``templates/runtimes/<runtime>`` holds the programs of one runtime. A bundle has those of the
runtime that it was measured with, and, in subfolders, those of the other runtimes that shipped devices have
for its format: whoever pulls it for another device gets the example of that device.
"""

from collections.abc import Container
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from edgeopt.devices.device import shipped_runtimes
from edgeopt.formats.known import format_named
from edgeopt.publish.contract import Contract
from edgeopt.publish.kit import firmware
from edgeopt.publish.kit.c_arrays import TYPES
from edgeopt.publish.kit.c_names import identifier
from edgeopt.publish.kit.rendering import render, templates
from edgeopt.publish.kit.vectors import Vectors

FOLDER = "example"


class Kotlin(NamedTuple):
    """How Kotlin writes a value of one type to a ``ByteBuffer``."""

    size: int
    put: str
    cast: str
    view: str


KOTLIN = {
    "float32": Kotlin(4, "putFloat", "", ".asFloatBuffer()"),
    "int8": Kotlin(1, "put", ".toInt().toByte()", ""),
    "uint8": Kotlin(1, "put", ".toInt().toByte()", ""),
    "int16": Kotlin(2, "putShort", ".toInt().toShort()", ".asShortBuffer()"),
    "int32": Kotlin(4, "putInt", ".toInt()", ".asIntBuffer()"),
    "int64": Kotlin(8, "putLong", ".toLong()", ".asLongBuffer()"),
}

C_TYPES: dict[str, Container[str]] = {".cpp": TYPES, ".kt": KOTLIN}
"""Supported tensor types of programs in other languages than Python, by suffix."""


def write_examples(folder: Path, contract: Contract, vectors: Vectors | None) -> list[Path]:
    """Write the examples for Linux and Android: of the measured runtime, and of others for its format."""
    own = contract.runtime.partition(" ")[0]
    written = _write(folder, own, contract, vectors)
    # A compiled file runs on its own device only, one with coded weights where they are decoded.
    only = format_named(contract.format).runtimes(folder.parent / contract.file.name)
    others = () if contract.compiled else shipped_runtimes(contract.format)
    for name in others:
        if name != own and (not only or name in only):
            written += _write(folder / name, name, contract, vectors, depth=2)
    return written


def _write(
    folder: Path, runtime: str, contract: Contract, vectors: Vectors | None, *, depth: int = 1
) -> list[Path]:
    """Write the examples for a runtime. ``depth``: levels below the bundle; from 2 on, without C++."""
    specs = (*contract.inputs, *contract.outputs)
    programs = {
        program: template
        for program, template in templates(f"runtimes/{runtime}").items()
        if (depth == 1 or not program.endswith(".cpp"))
        and all(spec.dtype in C_TYPES.get(PurePath(program).suffix, (spec.dtype,)) for spec in specs)
        # The C++ programs require golden vectors; a note of the contract explains why there are none.
        and (vectors is not None or not program.endswith(".cpp"))
    }
    if not programs:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    prefix = identifier(contract.name)
    values: dict[str, Any] = {
        "p": prefix,
        "P": prefix.upper(),
        "contract": contract,
        "golden": contract.golden,
        "has_raw": vectors is not None and bool(vectors.raw),
        "vectors": 0 if vectors is None else vectors.samples,
        "depth": depth,
        "kotlin": KOTLIN,
    }
    if any(PurePath(program).suffix in C_TYPES for program in programs):
        values |= {
            "inputs": firmware.inputs(contract, vectors),
            "outputs": firmware.outputs(contract, vectors),
        }
    written = []
    for program, template in programs.items():
        path = folder / program
        path.write_text(render(template, **values), "utf-8", newline="\n")
        written.append(path)
    if any(program.endswith(".cpp") for program in programs):
        written += firmware.write_preprocessing(folder, contract, vectors)
    return written
