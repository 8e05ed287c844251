"""Will a file run on a device? Told from the file and the device's description, before it is sent.

What a runtime has stands in tables under ``limits/``, which were made by asking the runtime itself. What is
not in a table is never guessed: a file without findings may still be refused, one with an error will not run.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.devices.device import Device, operator_tables
from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.layers import Layer, layers_of

Severity = Literal["error", "warning"]

FLEX = "Flex"
CASTS = {
    "QUANTIZE": "convert with int8 inputs and outputs, where this is one",
    "DEQUANTIZE": "convert with int8 inputs and outputs, where this is one",
}
"""Operators between types; most stand at the two ends of a file."""
WEIGHTS_ALONE = frozenset({"float16", "int4"})
"""Schemes that store weights smaller, and leave what flows between operators float."""
TO_INT8 = "quantize weights and activations: quantize: int8"


class Finding(BaseModel):
    """One reason why a file will not run on a device (``error``), or will not run as hoped (``warning``)."""

    model_config = ConfigDict(frozen=True)

    rule: str
    severity: Severity
    layer: str = Field("", description="operator and the name of its first output; empty for the whole file")
    message: str
    fix: str

    def __str__(self) -> str:
        where = f"{shortened(self.layer)}: " if self.layer else ""
        return f"[{self.rule}] {where}{self.message}; {self.fix}"


def shortened(layer: str) -> str:
    """A layer's name without all that converters fused into it."""
    first = layer.partition(";")[0]
    return first if len(first) == len(layer) else f"{first};…"


class Limit(BaseModel):
    """What a runtime says of one operator. What is not given is not limited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int | None = None
    types: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()


class Limits(BaseModel):
    """What a runtime has: a file of ``limits/``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str
    source: str
    missing: Annotated[Severity, Field(description="what it means when an operator is not there")]
    fallback: str = Field("", description="what carries out the operators that are not there")
    static_shapes: bool = Field(False, description="whether only the batch may be free")
    whole_tensors: bool = Field(
        True, description="whether inputs and outputs of an operator lie in memory as a whole"
    )
    custom: tuple[str, ...] = ()
    operators: dict[str, Limit]


@cache
def limits_of(table: str) -> Limits:
    """The table called ``table``; `device.read_device` has checked that it is there."""
    return Limits.model_validate(json.loads(operator_tables()[table].read_text("utf-8")))


def lint(file: Path, device: Device, format: str = "tflite") -> list[Finding]:
    """Everything that keeps ``file`` from running on ``device``, errors first. Nothing is run.

    Operators are looked at in TFLite files only; the size of the file, in all formats.

    Raises:
        StageError: it is no TFLite file, or is damaged.
    """
    findings = list(_flash(file, device))
    if format == "tflite" and (device.operators is not None or device.limits.ram is not None):
        layers = layers_of(load(file))
        if device.operators is not None:
            findings += _operators(layers, limits_of(device.operators), device)
        if device.operators is None or limits_of(device.operators).whole_tensors:
            findings += _ram(layers, device)
    return sorted(findings, key=lambda finding: finding.severity)


def lint_artifact(file: Path, device: Device, format: str) -> list[Finding]:
    """As `lint`, for what will be sent in any case: a file that cannot be read here is a warning."""
    try:
        return lint(file, device, format)
    except StageError as error:
        fix = error.fix or "the device's runtime has the last word"
        return [Finding(rule="unread", severity="warning", message=error.message, fix=fix)]


def lint_measured(measurements: Mapping[str, Mapping[str, Any]], device: Device) -> list[Finding]:
    """What the runtime itself told about memory, held against the device's limits.

    ``measurements`` are those of the agent: ``{"arena_bytes": {"value": 24272, "unit": "bytes"}}``.
    """
    found = []
    for name, limit, what, room in (
        ("arena_bytes", device.limits.ram, "the arena", "RAM"),
        ("sram_bytes", device.limits.ram, "the SRAM it uses", "RAM"),
        ("flash_bytes", device.limits.flash, "the compiled model", "flash"),
    ):
        if limit is not None and name in measurements and measurements[name]["value"] > limit:
            value = int(measurements[name]["value"])
            message = f"{what} takes {value:,} bytes, the device has {limit:,} bytes of {room}"
            fix = "use a smaller model or smaller inputs" if room == "RAM" else "make the model smaller"
            found.append(Finding(rule=room.lower(), severity="error", message=message, fix=fix))
    return found


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """The findings for which the file will not run."""
    return [finding for finding in findings if finding.severity == "error"]


def summary(findings: Sequence[Finding], most: int = 3) -> list[str]:
    """Findings as lines for a report: one per rule and cause, with the first layer and how many more."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.message, finding.fix), []).append(finding)
    lines = []
    for same in groups.values():
        more = f" (and {len(same) - 1} more layers)" if len(same) > 1 else ""
        lines.append(f"{same[0]}{more}")
    rest = [f"{len(lines) - most} more findings: see 'edgeopt lint'"] if len(lines) > most else []
    return [*lines[:most], *rest]


def expected(device: Device, format: str, schemes: Collection[str]) -> str:
    """What a recipe already tells: why files of these schemes are of no use on a device; empty if they are.

    ``schemes`` are those of one variant's ``quantize``; without any the file is float.
    """
    if format != "tflite" or device.operators is None:
        return ""
    operators = limits_of(device.operators).operators
    conv, dequantize = operators.get("CONV_2D", Limit()), operators.get("DEQUANTIZE", Limit())
    hybrid = any(scheme.startswith("dynamic") for scheme in schemes)
    if (hybrid or WEIGHTS_ALONE.issuperset(schemes)) and conv.types and "float32" not in conv.types:
        return f"its operators are for integers, so nothing of a float file would run there; {TO_INT8}"
    for weights, meant in (("int8", hybrid), ("int4", "int4" in schemes)):
        if meant and conv.pairs and f"float32 × {weights}" not in conv.pairs:
            return f"float activations with {weights} weights (hybrid) do not run there; {TO_INT8}"
    if "float16" in schemes and dequantize.types and "float16" not in dequantize.types:
        return f"weights stored as float16 are not made float32 again there; {TO_INT8}"
    return ""


def _flash(file: Path, device: Device) -> Iterator[Finding]:
    limit = device.limits.flash
    size = file.stat().st_size if file.is_file() else 0
    if limit is not None and size > limit:
        yield Finding(
            rule="flash",
            severity="error",
            message=f"the file has {size:,} bytes, the device has {limit:,} bytes of flash for it",
            fix="quantize or prune the model, or use a device with more flash",
        )


def _ram(layers: Sequence[Layer], device: Device) -> Iterator[Finding]:
    limit = device.limits.ram
    largest = max(layers, key=lambda layer: layer.working, default=None)
    if limit is not None and largest is not None and largest.working > limit:
        yield Finding(
            rule="ram",
            severity="error",
            layer=largest.label,
            message=f"its inputs and outputs alone take {largest.working:,} bytes, "
            f"the device has {limit:,} bytes of RAM",
            fix="use smaller inputs or fewer channels there, or int8 activations",
        )


def _operators(layers: Sequence[Layer], limits: Limits, device: Device) -> list[Finding]:
    findings = [finding for layer in layers if (finding := _operator(layer, limits)) is not None]
    if limits.missing == "warning" and layers and len(findings) == len(layers):
        kinds = {layer.activation for layer in layers}
        floats = {"float32", "float16"} & kinds
        what = "float operators" if floats else "operators it does not have"
        findings = [
            Finding(
                rule="float" if floats else "operator",
                severity="error",
                layer=layers[0].label,
                message=f"none of its {len(layers)} operators would run on {device.name}, all would run on "
                f"{limits.fallback}: {what}",
                fix=TO_INT8 if floats else "use operators of the table that 'edgeopt lint' names",
            )
        ]
    if limits.static_shapes:
        findings += [finding for layer in layers if (finding := _shape(layer, limits)) is not None]
    return findings


def _operator(layer: Layer, limits: Limits) -> Finding | None:
    """The first that is wrong with an operator."""

    def finding(rule: str, message: str, fix: str) -> Finding:
        if limits.fallback:
            message += f": {limits.fallback} carries it out"
        return Finding(rule=rule, severity=limits.missing, layer=layer.label, message=message, fix=fix)

    if layer.custom:
        if layer.kind in limits.custom:
            return None
        if layer.kind.startswith(FLEX):
            return finding(
                "flex",
                f"a TensorFlow operator, which {limits.runtime} does not have",
                "convert without SELECT_TF_OPS: replace the layer by one that TFLite has",
            )
        return finding(
            "custom", f"{limits.runtime} has no such custom operator", "replace it by built-in operators"
        )
    limit = limits.operators.get(layer.kind)
    if limit is None:
        way_out = CASTS.get(layer.kind, "replace the layer that makes it")
        return finding("operator", f"{limits.runtime} does not have it", way_out)
    if limit.version is not None and layer.version > limit.version:
        return finding(
            "version",
            f"version {layer.version}, {limits.runtime} has it up to version {limit.version}",
            "update the runtime, or convert with an older converter or other types",
        )
    weight, activation = layer.weight, layer.activation
    if activation.startswith("float") and weight in ("int8", "int4", "uint8") and limit.pairs:
        return finding(
            "hybrid", f"float activations with {weight} weights do not run on {limits.runtime}", TO_INT8
        )
    takes = ""
    if limit.pairs and weight and f"{activation} × {weight}" not in limit.pairs:
        takes, given = ", ".join(limit.pairs), f"{activation} × {weight}"
    elif limit.types and activation and activation not in limit.types:
        takes, given = ", ".join(limit.types), activation
    elif limit.weights and weight and weight not in limit.weights:
        takes, given = ", ".join(limit.weights), f"{weight} weights"
    if not takes:
        return None
    way_out = "use another type there, or replace the layer"
    if activation.startswith("float"):
        way_out = TO_INT8
    if activation == "float32":
        way_out = CASTS.get(layer.kind, way_out)
    return finding("dtype", f"{given}, {limits.runtime} takes {takes}", way_out)


def _shape(layer: Layer, limits: Limits) -> Finding | None:
    """A batch may be free: it is stored as 1. Any other free dimension needs memory that is not planned."""
    for shape in layer.shapes:
        if any(size < 0 for size in shape[1:]):
            told = "×".join("?" if size < 0 else str(size) for size in shape)
            return Finding(
                rule="shape",
                severity="error",
                layer=layer.label,
                message=f"an output of shape {told}, {limits.runtime} plans memory for fixed shapes only",
                fix="convert with fixed input shapes",
            )
    return None
