"""One bundle: a folder with a model file for one device and everything that belongs to it."""

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.config.files import file_digest, files_of
from edgeopt.devices.device import load_device
from edgeopt.devices.tables import limits_of
from edgeopt.errors import StageError, UsageError, VerificationError
from edgeopt.formats.known import format_named
from edgeopt.formats.wire.bounded import json_value
from edgeopt.model import Preprocessing, TensorSpec
from edgeopt.plugin import Operator
from edgeopt.publish import contract as contracts
from edgeopt.publish.contract import MICROCONTROLLERS, Arena, BundleFile, Contract, Raw
from edgeopt.publish.kit import examples, firmware, model_card, vectors
from edgeopt.publish.kit.c_names import file_name, one_line
from edgeopt.publish.kit.emulation import emulated, named
from edgeopt.publish.kit.vectors import Vectors
from edgeopt.results import Report, Result

MARGIN = 0.1
"""Fraction added to the arena: a later runtime version or an optimized kernel may need more."""
KIB = 1024
LABELS = "labels.txt"
REAL_INPUT = (
    "the model has float inputs and quantizes them itself; quantize: {scheme: int8, io: int8} in the "
    "recipe moves the quantization into the preprocessing and saves memory"
)


def publishable(report: Report) -> list[Result]:
    """The results that can be published, in the order of the report."""
    return [result for result in report.results if result.status == "ok" and result.artifact is not None]


def make_bundle(
    run: Path, report: Report, result: Result, folder: Path, *, name: str, version: str
) -> Contract:
    """Write the bundle of one result to ``folder``; existing files in it become part of the bundle.

    The same run gives the same bytes. The contract does not list files that are added later, such as
    provenance and signature.

    Raises:
        UsageError: the run lacks a file, the result cannot be published, or ``folder`` holds a bundle.
        VerificationError: the artifact is not the one that was measured.
        CannotRunError: the firmware kit does not support a type or an operator of the model.
        MissingPackageError: jinja2 is not installed.
    """
    source = _artifact(run, result)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / contracts.FILE).exists():
        raise UsageError(f"{folder} already contains a bundle", fix="choose a folder that does not exist yet")
    golden = vectors.find(run, result)
    operators = _operators(source, result.format)
    contract = _contract(run, report, result, golden, source, operators, name=name, version=version)
    kind = format_named(result.format)
    model = folder / contract.file.name
    kind.copy_to(source, model)
    contract = contract.model_copy(
        update={"parts": tuple(_bundle_files(folder, *(file for file in kind.files(model) if file != model)))}
    )
    if golden is not None:
        _write_vectors(folder / "golden", golden)
    if contract.labels:
        text = "".join(f"{one_line(label)}\n" for label in contract.labels)
        (folder / LABELS).write_text(text, "utf-8", newline="\n")
    if operators and wants_firmware(result):
        variables = sum(operator.kind == "VAR_HANDLE" for operator in operators)
        firmware.write_kit(
            folder / firmware.FOLDER, contract, source.read_bytes(), golden, variables=variables
        )
    examples.write_examples(folder / examples.FOLDER, contract, golden)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    (folder / model_card.FILE).write_text(
        model_card.model_card(contract, report, present), "utf-8", newline="\n"
    )
    model_names = {file.name for file in contract.model_files}
    others = [path for path in files_of(folder) if path.relative_to(folder).as_posix() not in model_names]
    contract = contract.model_copy(update={"files": tuple(_bundle_files(folder, *others))})
    (folder / contracts.FILE).write_text(contract.encode(), "utf-8", newline="\n")
    return contract


def wants_firmware(result: Result) -> bool:
    """Whether a result targets a microcontroller, by its runtime or its device's operator table."""
    if result.runtime.partition(" ")[0] in MICROCONTROLLERS:
        return True
    try:
        table = load_device(result.device).operators
        return table == firmware.OPERATORS and limits_of(table).format == result.format
    except UsageError:
        return False  # without a device file, only the runtime identifies a microcontroller


def _artifact(run: Path, result: Result) -> Path:
    """The artifact of a result, verified against its digest in the report."""
    if result.status != "ok" or result.artifact is None:
        raise UsageError(
            f"{result.variant}.{result.format} on {result.device} cannot be published: {result.status}",
            fix="publish a result with status ok",
        )
    path = run / result.artifact.path
    if not path.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{result.artifact.path} is outside the run {run}")
    if not path.exists():
        raise UsageError(f"{path} no longer exists", fix="run 'edgeopt optimize' again")
    if format_named(result.format).digest(path) != result.artifact.digest:
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
    source: Path,
    parsed: Sequence[Operator],
    *,
    name: str,
    version: str,
) -> Contract:
    """The contract, still without its lists of files."""
    assert result.artifact is not None
    record = record_of(run, result)
    kind = format_named(result.format)
    outputs = tuple(TensorSpec.model_validate(spec) for spec in record["outputs"])
    if golden is not None and len(outputs) != len(golden.outputs):
        # Not every format declares its outputs: take their shapes and types from the golden vectors.
        outputs = tuple(
            TensorSpec(name=f"output_{index}", shape=(1, *values.shape[1:]), dtype=values.dtype.name)
            for index, values in enumerate(golden.outputs)
        )
    quantized = any("quantize" in stage for stage in result.chain)
    operators = tuple(sorted({operator.kind for operator in parsed}))
    inputs = tuple(TensorSpec.model_validate(spec) for spec in record["inputs"])
    steps = _preprocessing(record["preprocessing"])
    notes: tuple[str, ...] = ()
    if golden is None:
        notes = ("no golden vectors: no runtime of this run returned outputs",)
    float_input = "QUANTIZE" in operators and any(spec.dtype == "float32" for spec in inputs)
    if float_input and wants_firmware(result):
        notes = (*notes, REAL_INPUT)
    return Contract(
        name=name,
        version=version,
        variant=result.variant,
        format=result.format,
        device=result.device,
        emulated=emulated(result.device, report),
        # The path of a compiled file includes the name of its device.
        compiled=result.artifact.path != f"models/{result.variant}{kind.suffix}",
        file=BundleFile(
            name=file_name(name) + kind.suffix,
            sha256=file_digest(source) if source.is_file() else result.artifact.digest,
            size_bytes=source.stat().st_size if source.is_file() else result.artifact.size_bytes,
        ),
        inputs=inputs,
        outputs=outputs,
        raw=tuple(Raw(shape=r.shape[1:], dtype=r.dtype.name) for r in (golden.raw if golden else ())),
        schema_version=contracts.BY_INPUT if isinstance(steps, tuple) else contracts.SCHEMA,
        preprocessing=steps,
        postprocess=record.get("postprocess"),
        tasks=record.get("tasks", ()),
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
            vectors.units_of(golden, kind.output_steps(source), quantized=quantized),
            emulated=emulated(golden.device, report),
        ),
        notes=notes,
    )


def _preprocessing(record: Any) -> Preprocessing | tuple[Preprocessing, ...]:
    """The preprocessing of all inputs, or of each of them, as the run recorded it."""
    if isinstance(record, list):
        return tuple(Preprocessing.model_validate(each) for each in record)
    return Preprocessing.model_validate(record)


def record_of(run: Path, result: Result) -> dict[str, Any]:
    """The record that the run wrote next to the built file, before any device-specific compilation."""
    path = run / "models" / f"{result.variant}{format_named(result.format).suffix}.json"
    try:
        record = json_value(path.read_text("utf-8"))
        if isinstance(record, dict) and {"inputs", "outputs", "preprocessing", "labels"} <= set(record):
            return record
        raise ValueError("it does not describe the model's inputs and outputs")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", fix="run 'edgeopt optimize' again") from error


def _arena(report: Report, result: Result) -> Arena | None:
    """The arena to reserve for TFLM: as TFLM recorded it, or as the compiler estimates the tensors.

    The compiler's estimate does not include TFLM's own bookkeeping. If TFLM has run the same artifact
    uncompiled, the bookkeeping of that run is added, which is enough: one NPU operator needs less of it than
    the operators that it replaces.
    """
    measured = result.measurements
    if "arena_bytes" in measured:
        return _with_margin(
            int(measured["arena_bytes"].value), f"arena_bytes on {named(result.device, report)}"
        )
    if "sram_bytes" not in measured:
        return None
    size, source = int(measured["sram_bytes"].value), f"sram_bytes on {result.device}"
    for other in report.results:
        same = (other.variant, other.format) == (result.variant, result.format)
        if same and "arena_tail_bytes" in other.measurements:
            size += int(other.measurements["arena_tail_bytes"].value)
            return _with_margin(size, f"{source} + arena_tail_bytes on {named(other.device, report)}")
    return _with_margin(size, f"{source}, without the bookkeeping of TensorFlow Lite Micro")


def _with_margin(size: int, source: str) -> Arena:
    return Arena(
        measured_bytes=size,
        recommended_bytes=ceil(size * (1 + MARGIN) / KIB) * KIB,
        margin=MARGIN,
        source=source,
    )


def _operators(path: Path, format_name: str) -> tuple[Operator, ...]:
    """The operators of a file, including called subgraphs; empty if its format does not declare them."""
    try:
        return format_named(format_name).operators(path) or ()
    except StageError as error:
        raise VerificationError(error.message, fix=error.fix) from error


def _write_vectors(folder: Path, golden: Vectors) -> None:
    folder.mkdir()
    for name, array in golden.named().items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)


def _bundle_files(folder: Path, *files: Path) -> Iterator[BundleFile]:
    """The contract's entries for some files, sorted by name."""
    names = {file.relative_to(folder).as_posix(): file for file in files}
    for name, file in sorted(names.items()):
        yield BundleFile(name=name, sha256=file_digest(file), size_bytes=file.stat().st_size)
