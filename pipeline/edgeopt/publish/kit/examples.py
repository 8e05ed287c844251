"""Short programs that load a model, prepare samples, run it and check the golden vectors.

For a device with Python they are run as they are; the C++ and Kotlin ones are to be copied into a project.
"""

from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.publish.contract import Contract
from edgeopt.publish.kit import firmware
from edgeopt.publish.kit.c_arrays import TYPES
from edgeopt.publish.kit.c_names import identifier
from edgeopt.publish.kit.rendering import render
from edgeopt.publish.kit.vectors import Vectors

FOLDER = "example"


class Runtime(NamedTuple):
    """How one runtime is used: the package that brings it, and the template of each language."""

    package: str
    python: bool
    native: str
    """Template of the program in C++ or Kotlin; empty where there is none."""


class Kotlin(NamedTuple):
    """How Kotlin puts a value of one type into a ``ByteBuffer``."""

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

RUNTIMES = {
    "litert": Runtime("ai-edge-litert", True, "run_tflite.cpp"),
    "tflite_runtime": Runtime("tflite-runtime", True, "run_tflite.cpp"),
    "onnxruntime": Runtime("onnxruntime", True, "run_onnx.cpp"),
    "onnxruntime_cuda": Runtime("onnxruntime-gpu", True, "run_onnx.cpp"),
    "executorch": Runtime("executorch", True, ""),
    "torchscript": Runtime("torch", True, ""),
    "adb_litert": Runtime("com.google.ai.edge.litert:litert", False, "RunTflite.kt"),
    "adb_executorch": Runtime("org.pytorch:executorch-android", False, "RunExecutorch.kt"),
}


def write_examples(folder: Path, contract: Contract, vectors: Vectors | None) -> list[Path]:
    """Write the examples for the runtime that was measured, if it is one of Linux or Android."""
    name = contract.runtime.partition(" ")[0]
    runtime = RUNTIMES.get(name)
    if runtime is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    prefix = identifier(contract.name)
    values: dict[str, Any] = {
        "p": prefix,
        "P": prefix.upper(),
        "contract": contract,
        "golden": contract.golden,
        "has_raw": vectors is not None and bool(vectors.raw),
        "runtime": name,
        "package": runtime.package,
        "vectors": 0 if vectors is None else vectors.samples,
        "kotlin": KOTLIN,
    }
    names = ["run_model.py"] if runtime.python else []
    specs = (*contract.inputs, *contract.outputs)
    known = KOTLIN if runtime.native.endswith(".kt") else TYPES
    native = bool(runtime.native) and all(spec.dtype in known for spec in specs)
    if runtime.native.endswith(".cpp") and vectors is None:
        native = False  # it compares with the golden vectors, and the contract says why there are none
    if native:
        names.append(runtime.native)
        values |= {
            "inputs": firmware.inputs(contract, vectors),
            "outputs": firmware.outputs(contract, vectors),
        }
    written = []
    for template in names:
        path = folder / template
        path.write_text(render(template, **values), "utf-8", newline="\n")
        written.append(path)
    if native and runtime.native.endswith(".cpp"):
        written += firmware.write_preprocessing(folder, contract, vectors)
    return written
