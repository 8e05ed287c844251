"""One bundle: a model file for one device, and all that belongs to it, in a folder."""

import json
import shutil
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.devices.device import load_device
from edgeopt.errors import StageError, UsageError, VerificationError
from edgeopt.formats.tflite.files.model_file import TfliteFile, kind_of, load
from edgeopt.model import SUFFIXES, Preprocessing, TensorSpec, file_digest
from edgeopt.publish import contract as contracts
from edgeopt.publish.contract import Arena, BundleFile, Contract, Raw
from edgeopt.publish.kit import examples, firmware, model_card, vectors
from edgeopt.publish.kit.c_names import file_name, one_line
from edgeopt.publish.kit.emulation import emulated, named
from edgeopt.publish.kit.vectors import Vectors
from edgeopt.results import Report, Result

MARGIN = 0.1
"""Of the arena: what a later version of the runtime, or an optimized kernel, may need."""
KIB = 1024
LABELS = "labels.txt"
REAL_INPUT = (
    "the model takes real numbers and quantizes them itself; quantize: {scheme: int8, io: int8} in the "
    "recipe moves that into the preprocessing and saves memory"
)


def publishable(report: Report) -> list[Result]:
    """The results that a bundle can be made of, in the order of the report."""
    return [result for result in report.results if result.status == "ok" and result.artifact is not None]


def make_bundle(
    run: Path, report: Report, result: Result, folder: Path, *, name: str, version: str
) -> Contract:
    """Write the bundle of one result to ``folder``; what lies there already is part of it.

    The same run gives the same bytes. What is added later, such as provenance and signature, is not among the
    ``files`` of the contract.

    Raises:
        UsageError: the run lacks a file, the result cannot be published, or ``folder`` holds a bundle.
        VerificationError: the artifact is not the one that was measured.
        CannotRunError: the model has a type or an operator that the firmware kit cannot have.
        MissingPackageError: jinja2 is not installed.
    """
    source = _artifact(run, result)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / contracts.FILE).exists():
        raise UsageError(f"{folder} holds a bundle already", fix="give a folder that is not there yet")
    golden = vectors.find(run, result)
    parsed = _parsed(source) if result.format == "tflite" else None
    contract = _contract(run, report, result, golden, parsed, name=name, version=version)
    shutil.copyfile(source, folder / contract.file.name)
    if golden is not None:
        _write_vectors(folder / "golden", golden)
    if contract.labels:
        text = "".join(f"{one_line(label)}\n" for label in contract.labels)
        (folder / LABELS).write_text(text, "utf-8", newline="\n")
    if parsed is not None and wants_firmware(result):
        variables = sum(kind == "VAR_HANDLE" for kind in _kinds(parsed))
        firmware.write_kit(
            folder / firmware.FOLDER, contract, source.read_bytes(), golden, variables=variables
        )
    examples.write_examples(folder / examples.FOLDER, contract, golden)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    (folder / model_card.FILE).write_text(
        model_card.model_card(contract, report, there), "utf-8", newline="\n"
    )
    contract = contract.model_copy(
        update={"files": tuple(_described(folder, but=(contract.file.name, contracts.FILE)))}
    )
    (folder / contracts.FILE).write_text(contract.encode(), "utf-8", newline="\n")
    return contract


def wants_firmware(result: Result) -> bool:
    """Whether a result is meant for a microcontroller: by its runtime, or by the device's operators."""
    if result.format != "tflite":
        return False
    if result.runtime.partition(" ")[0] in firmware.RUNTIMES:
        return True
    try:
        return load_device(result.device, (Path("devices"),)).operators == "tflite-micro"
    except UsageError:
        return False  # described elsewhere; what ran there was told by the runtime


def _artifact(run: Path, result: Result) -> Path:
    """The finished file of a result, checked against what was measured."""
    if result.status != "ok" or result.artifact is None:
        raise UsageError(
            f"{result.variant}.{result.format} on {result.device} cannot be published: {result.status}",
            fix="publish what the report lists as ok",
        )
    path = run / result.artifact.path
    if not path.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{result.artifact.path} lies outside of the run {run}")
    if not path.is_file():
        raise UsageError(f"{path} is not there any more", fix="run 'edgeopt optimize' again")
    if file_digest(path) != result.artifact.digest:
        raise VerificationError(
            f"{path} is not the file that was measured: its digest differs",
            fix="run 'edgeopt optimize' again",
        )
    return path


def _contract(
    run: Path,
    report: Report,
    result: Result,
    golden: Vectors | None,
    parsed: TfliteFile | None,
    *,
    name: str,
    version: str,
) -> Contract:
    assert result.artifact is not None
    record = record_of(run, result)
    suffix = SUFFIXES[result.format]
    outputs = tuple(TensorSpec.model_validate(spec) for spec in record["outputs"])
    if golden is not None and len(outputs) != len(golden.outputs):
        # Not every format tells what it gives; what came out does.
        outputs = tuple(
            TensorSpec(name=f"output_{index}", shape=(1, *values.shape[1:]), dtype=values.dtype.name)
            for index, values in enumerate(golden.outputs)
        )
    steps = vectors.output_steps(parsed) if parsed is not None else []
    quantized = any("quantize" in stage for stage in result.chain)
    operators = tuple(sorted(set(_kinds(parsed)))) if parsed is not None else ()
    inputs = tuple(TensorSpec.model_validate(spec) for spec in record["inputs"])
    notes: tuple[str, ...] = ()
    if golden is None:
        notes = ("no golden vectors: no runtime of this run told its outputs",)
    real = "QUANTIZE" in operators and any(spec.dtype == "float32" for spec in inputs)
    if real and wants_firmware(result):
        notes = (*notes, REAL_INPUT)
    return Contract(
        name=name,
        version=version,
        variant=result.variant,
        format=result.format,
        device=result.device,
        emulated=emulated(result.device, report),
        # A compiled file is kept under its device's name.
        compiled=result.artifact.path != f"models/{result.variant}{suffix}",
        file=BundleFile(
            name=file_name(name) + suffix,
            sha256=result.artifact.digest,
            size_bytes=result.artifact.size_bytes,
        ),
        inputs=inputs,
        outputs=outputs,
        raw=tuple(Raw(shape=r.shape[1:], dtype=r.dtype.name) for r in (golden.raw if golden else ())),
        preprocessing=Preprocessing.model_validate(record["preprocessing"]),
        labels=tuple(record["labels"]),
        measured=result.measurements,
        operators=operators,
        arena=_arena(report, result),
        runtime=result.runtime,
        chain=result.chain,
        gates=tuple(
            verdict
            for verdict in report.gates
            if (verdict.variant, verdict.format, verdict.device)
            == (result.variant, result.format, result.device)
        ),
        golden=None
        if golden is None
        else vectors.describe(
            golden,
            report,
            result,
            vectors.units_of(golden, steps, quantized=quantized),
            emulated=emulated(golden.device, report),
        ),
        notes=notes,
    )


def record_of(run: Path, result: Result) -> dict[str, Any]:
    """What the run wrote beside the file that it made, before any compiler of a device."""
    path = run / "models" / f"{result.variant}{SUFFIXES[result.format]}.json"
    try:
        record = json.loads(path.read_text("utf-8"))
        if isinstance(record, dict) and {"inputs", "outputs", "preprocessing", "labels"} <= set(record):
            return record
        raise ValueError("it lacks what the model takes and gives")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", fix="run 'edgeopt optimize' again") from error


def _arena(report: Report, result: Result) -> Arena | None:
    """What to reserve for TFLM: as it recorded it, or as the compiler estimates the tensors.

    A compiler knows nothing of TFLM's own bookkeeping; where TFLM has run the same artifact uncompiled, its
    own is added: one operator for the NPU has less of it than the operators that it stands for.
    """
    measured = result.measurements
    if "arena_bytes" in measured:
        return _with_margin(
            int(measured["arena_bytes"].value), f"arena_bytes on {named(result.device, report)}"
        )
    if "sram_bytes" not in measured:
        return None
    size, told = int(measured["sram_bytes"].value), f"sram_bytes on {result.device}"
    for other in report.results:
        same = (other.variant, other.format) == (result.variant, result.format)
        if same and "arena_tail_bytes" in other.measurements:
            size += int(other.measurements["arena_tail_bytes"].value)
            return _with_margin(size, f"{told} + arena_tail_bytes on {named(other.device, report)}")
    return _with_margin(size, f"{told}, without the bookkeeping of TensorFlow Lite Micro")


def _with_margin(size: int, source: str) -> Arena:
    return Arena(
        measured_bytes=size,
        recommended_bytes=ceil(size * (1 + MARGIN) / KIB) * KIB,
        margin=MARGIN,
        source=source,
    )


def _parsed(path: Path) -> TfliteFile:
    try:
        return load(path)
    except StageError as error:
        raise VerificationError(error.message, fix=error.fix) from error


def _kinds(file: TfliteFile) -> list[str]:
    """The kind of every operator, also in subgraphs that operators call."""
    kinds = [kind_of(code) for code in file.model.tables("operator_codes")]
    return [
        kinds[operator.integer("opcode_index")]
        for graph in file.model.tables("subgraphs")
        for operator in graph.tables("operators")
    ]


def _write_vectors(folder: Path, golden: Vectors) -> None:
    folder.mkdir()
    for name, array in golden.named().items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)


def _described(folder: Path, but: Sequence[str]) -> Iterator[BundleFile]:
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in but:
            yield BundleFile(name=name, sha256=file_digest(path), size_bytes=path.stat().st_size)
