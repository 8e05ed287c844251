"""The firmware kit: a TFLite model as C and C++ sources for embedded projects."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.devices.tables import operator_tables
from edgeopt.errors import CannotRunError
from edgeopt.model import Array, TensorSpec
from edgeopt.publish.contract import Contract
from edgeopt.publish.kit.c_arrays import c_type, float_literal, hexadecimal, literals
from edgeopt.publish.kit.c_names import identifier
from edgeopt.publish.kit.forms import write_forms
from edgeopt.publish.kit.preprocess_c import InputCode, input_code
from edgeopt.publish.kit.rendering import render
from edgeopt.publish.kit.vectors import Vectors

FOLDER = "firmware"
BUDGET = 64
"""KiB of flash for golden vectors; at least one vector is included."""
MOST_VECTORS = 99
"""Limit of the numbers of vectors in a self-test code."""
HOST_CHECK = "host/check.c"
"""A program for a PC. Not beside the other sources: it has a ``main``, and they are added to a firmware."""
OPERATORS = "tflite-micro"
"""The operator table of TensorFlow Lite Micro."""

_NAMES = {
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "BATCH_MATMUL": "BatchMatMul",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
    "TFLite_Detection_PostProcess": "DetectionPostprocess",
    "CIRCULAR_BUFFER": "CircularBuffer",
    "TFLM_DECODE": "Decode",
    "ethos-u": "EthosU",
}
"""Method names in TFLM's ``MicroMutableOpResolver`` that do not follow from the operator name."""


@dataclass(frozen=True)
class OutputCode:
    """Template values of one output."""

    spec: TensorSpec
    shape: tuple[int, ...]
    elements: int
    type: str
    quantized: bool
    step: str
    zero_point: int
    difference: str
    """C type in which two outputs are subtracted."""
    tolerance: str


@dataclass(frozen=True)
class _RawCode:
    type: str
    samples: list[list[str]]


def write_kit(
    folder: Path, contract: Contract, model: bytes, vectors: Vectors | None, *, variables: int = 0
) -> list[Path]:
    """Write the kit to ``folder`` and return its files. ``variables``: resource variables of the model.

    Raises:
        CannotRunError: no C code can be generated for a type or an operator of the model.
    """
    prefix = identifier(contract.name)
    codes = inputs(contract, vectors)
    count = _vector_count(vectors) if vectors is not None else 0
    results = outputs(contract, vectors)
    sources = ["model_data.c", "preprocess.c"]
    others = [
        "model_data.h",
        "model_contract.h",
        "preprocess.h",
        "op_resolver.h",
        "main_tflm.cc",
        "README.md",
    ]
    if count:
        sources += ["golden_vectors.c", "self_test.c"]
        others += ["golden_vectors.h", "self_test.h", HOST_CHECK]
    values: dict[str, Any] = {
        "p": prefix,
        "P": prefix.upper(),
        "contract": contract,
        "golden": contract.golden,
        "inputs": codes,
        "outputs": results,
        "data": hexadecimal(model),
        "methods": [resolver_method(kind) for kind in contract.operators],
        "vectors": count,
        "budget": BUDGET,
        "variables": variables,
        "missing": contract.notes[0] if contract.notes else "",
        "sources": sources,
        **_samples(vectors, count, codes),
    }
    written = []
    for name in [*sources, *others, "CMakeLists.txt"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(name, **values), "utf-8", newline="\n")
        written.append(path)
    return [*written, *write_forms(folder, sources, values)]


def write_preprocessing(folder: Path, contract: Contract, vectors: Vectors | None) -> list[Path]:
    """Write the part of the kit that does not depend on TFLM: contract and preprocessing."""
    prefix = identifier(contract.name)
    values: dict[str, Any] = {
        "p": prefix,
        "P": prefix.upper(),
        "contract": contract.model_copy(update={"arena": None, "operators": (), "labels": ()}),
        "inputs": inputs(contract, vectors),
        "outputs": outputs(contract, vectors),
    }
    written = []
    for name in ("model_contract.h", "preprocess.h", "preprocess.c"):
        path = folder / name
        path.write_text(render(name, **values), "utf-8", newline="\n")
        written.append(path)
    return written


def inputs(contract: Contract, vectors: Vectors | None) -> list[InputCode]:
    """The template values of every input."""
    raw = vectors.raw if vectors is not None else ()
    return [
        input_code(
            index,
            spec,
            shape_of(spec, vectors.inputs[index] if vectors is not None else None),
            raw[index][0] if raw else None,
            contract.preprocessing_of(index),
        )
        for index, spec in enumerate(contract.inputs)
    ]


def outputs(contract: Contract, vectors: Vectors | None) -> list[OutputCode]:
    """The template values of every output."""
    codes = []
    for index, spec in enumerate(contract.outputs):
        shape = shape_of(spec, vectors.outputs[index] if vectors is not None else None)
        ctype = c_type(spec.dtype, f"output {spec.name!r}")
        golden = contract.golden
        tolerance = str(golden.tolerance) if golden is not None else "0"
        if golden is not None and ctype in ("float", "double"):
            tolerance = float_literal(golden.tolerance * golden.units[index])
        codes.append(
            OutputCode(
                spec=spec,
                shape=(1, *shape),
                elements=prod(shape),
                type=ctype,
                quantized=spec.scale is not None and ctype not in ("float", "double"),
                step=float_literal(spec.scale or 1.0),
                zero_point=spec.zero_point or 0,
                difference=ctype if ctype in ("float", "double") else "int64_t",
                tolerance=tolerance,
            )
        )
    return codes


def shape_of(spec: TensorSpec, sample: Array | None) -> tuple[int, ...]:
    """The shape of one sample; dynamic dimensions are those of the golden vectors, or 1."""
    if sample is not None:
        return tuple(int(size) for size in sample.shape[1:])
    return tuple(1 if size is None else size for size in spec.shape[1:])


def resolver_method(kind: str) -> str:
    """The method of ``MicroMutableOpResolver`` that adds an operator.

    Raises:
        CannotRunError: TFLM has no such operator.
    """
    table = json.loads(operator_tables()[OPERATORS].read_text("utf-8"))
    if kind not in table["operators"] and kind not in table["custom"] and kind != "ethos-u":
        raise CannotRunError(
            f"TensorFlow Lite Micro has no operator {kind}",
            fix="'edgeopt lint' lists the operators that a device does not support",
        )
    if kind in table["custom"] and kind not in _NAMES:
        return f"Add{kind.removeprefix('Signal')}"
    words = (word.capitalize().replace("2d", "2D") for word in kind.split("_"))
    return f"Add{_NAMES.get(kind) or ''.join(words)}"


def _vector_count(vectors: Vectors) -> int:
    """The number of golden vectors that fit the budget."""
    arrays = (*vectors.raw, *vectors.inputs, *vectors.outputs)
    size = sum(int(array[0].nbytes) for array in arrays)
    return max(1, min(vectors.samples, MOST_VECTORS, BUDGET * 1024 // max(size, 1)))


def _samples(vectors: Vectors | None, count: int, codes: Sequence[InputCode]) -> dict[str, Any]:
    """The golden vectors as C literals."""
    if vectors is None:
        return {"raw": [], "golden_inputs": [], "golden_outputs": []}
    raw = [
        _RawCode(code.raw_type, [literals(np.asarray(array[index])) for index in range(count)])
        for code, array in zip(codes, vectors.raw, strict=False)
    ]
    return {
        "raw": raw,
        "golden_inputs": [[literals(a[index]) for a in vectors.inputs] for index in range(count)],
        "golden_outputs": [[literals(a[index]) for a in vectors.outputs] for index in range(count)],
    }
