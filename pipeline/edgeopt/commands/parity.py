"""Parity of devices: differences between the outputs of one file, and the first layer that differs."""

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgeopt.commands.profile import fit_layout
from edgeopt.config.files import file_digest
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import Device, load_device
from edgeopt.errors import DeviceError, UsageError
from edgeopt.evaluation.comparison import difference, distance
from edgeopt.formats.known import format_named
from edgeopt.formats.side_car import LayerRecord
from edgeopt.formats.source import inspect
from edgeopt.model import Array, InputPreprocessing, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset, Format
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.protocol import LayerInfo
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store

FLOAT_NOISE = 1e-5
"""Relative to a layer's largest value: differences up to this come from the order of float32 sums."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerDifference(_Frozen):
    """The first operator, in execution order, whose outputs differ."""

    index: int = Field(description="number of operators before it, whose outputs agree")
    name: str
    operator: str
    max_error: float | None = Field(None, description="largest difference, for a float layer")
    max_steps: int | None = Field(
        None, description="largest difference in quantization steps, for an integer layer"
    )


class DeviceParity(_Frozen):
    """One device, compared with the first."""

    device: str
    runtime: str = ""
    emulated: bool = False
    status: Literal["ok", "failed", "skipped"] = "ok"
    reason: str = ""
    differing: int | None = Field(None, description="samples with any difference")
    max_error: float | None = None
    max_steps: int | None = Field(
        None, description="largest difference of an output in quantization steps; see steps_before"
    )
    steps_before: str = Field(
        "",
        description="the final operator in front of which the steps are counted, on the samples that differ "
        "most, because it turns one step of its input into many; empty: they are those of the output",
    )
    flips: int | None = Field(None, description="samples with another top-1 class")
    layer: LayerDifference | None = None
    layer_note: str = ""


class Parity(_Frozen):
    """A file on several devices; the others are compared with the first."""

    file: str
    digest: str
    samples: int
    random_inputs: bool
    devices: tuple[DeviceParity, ...]


def parity(
    file: str | Path,
    devices: Sequence[str],
    *,
    device_folders: Sequence[Path] = (),
    dataset: Dataset | None = None,
    preprocessing: Preprocessing | InputPreprocessing | None = None,
    inputs: tuple[TensorSpec, ...] = (),
) -> Parity:
    """Run one file on every device with the same inputs and compare with the first device.

    Args:
        file: a .tflite, .onnx, .ptl or .pte file.
        devices: names of devices or device files, at least two.
        dataset: samples to run; without one, seeded random inputs are used.
        preprocessing: from raw sample to model input; default none.
        inputs: specs for formats that do not declare their inputs.

    Raises:
        UsageError: the file is not a model, or the first device has no runtime for it.
        DeviceError: the first device is unreachable or rejects the file.
    """
    if len(devices) < 2:
        raise UsageError(
            "parity compares devices: name at least two",
            fix="such as --device host --device arm64-emulated",
        )
    path = Path(file)
    targets = [load_device(name, device_folders) for name in devices]
    model = inspect(path).model
    model = model.model_copy(update={"inputs": inputs or model.inputs})
    if model.format not in targets[0].runtimes:
        raise UsageError(
            f"device {targets[0].name} has no runtime for {model.format}",
            fix="put a device that has one first",
        )
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        folder = Path(name)
        agent, store = build_agent(folder / "agent.pyz"), Store(folder / "store")
        first = Bench(targets[0], agent, store).open()
        if first.failure:
            raise DeviceError(first.failure)
        if not model.inputs:
            model = model.model_copy(update={"inputs": first.describe(model)})
        prepared = preprocessing or Preprocessing()
        if dataset is not None:
            model, prepared = fit_layout(model, prepared, dataset)
        evaluation = Evaluation(dataset, prepared, folder)
        reference = first.run(model, evaluation)
        if reference.error or not reference.outputs:
            reason = reference.error or "the device compiles only and returns no outputs"
            raise DeviceError(f"{path.name} on {targets[0].name}: {reason}")
        rows = [
            DeviceParity(
                device=targets[0].name,
                runtime=reference.runtime,
                emulated=targets[0].emulated,
                differing=0,
                max_error=0.0,
            )
        ]
        for target in targets[1:]:
            rows.append(_row(target, model, evaluation, first, reference, agent, store))
    return Parity(
        file=path.name,
        digest=file_digest(path) if path.is_file() else "",
        samples=reference.samples,
        random_inputs=dataset is None,
        devices=tuple(rows),
    )


def _row(
    target: Device,
    model: Model,
    evaluation: Evaluation,
    first: Bench,
    reference: Outcome,
    agent: Path,
    store: Store,
) -> DeviceParity:
    common: dict[str, Any] = {"device": target.name, "emulated": target.emulated}
    if model.format not in target.runtimes:
        return DeviceParity(status="skipped", reason=f"no runtime for {model.format}", **common)
    bench = Bench(target, agent, store).open()
    outcome = bench.run(model, evaluation)
    common["runtime"] = outcome.runtime
    if outcome.error:
        status = "skipped" if outcome.unreachable else "failed"
        return DeviceParity(status=status, reason=outcome.error, **common)
    if not outcome.outputs:
        return DeviceParity(
            status="skipped", reason="the device compiles only and returns no outputs", **common
        )
    try:
        outputs = difference(reference.outputs, outcome.outputs, reference.output_scales)
    except UsageError as error:
        return DeviceParity(status="failed", reason=error.message, **common)
    layer, note, steps, before = None, "", outputs.max_steps, ""
    if outputs.differing:
        sides = {
            side.device.name: side.run(model, evaluation, layers=outputs.worst) for side in (first, bench)
        }
        kind = format_named(model.format)
        layer, note = first_layer(sides, kind.casts)
        if steps is not None and len(outcome.outputs) == 1:
            steps, before = steps_in_front(sides, kind.casts, kind.magnifying) or (steps, "")
        if layer is not None:
            layer = layer.model_copy(update={"name": _name(layer, model, kind)})
    return DeviceParity(
        differing=outputs.differing,
        max_error=outputs.max_error,
        max_steps=steps,
        steps_before=before,
        flips=outputs.flips,
        layer=layer,
        layer_note=note,
        **common,
    )


def _name(layer: LayerDifference, model: Model, kind: Format) -> str:
    """The name of a layer in the source model, as far as the file or the record beside it has it."""
    record = LayerRecord(model.path, kind.digest(model.path))
    operators = kind.operators(model.path) or ()
    names = record.of([operator.name for operator in operators])
    if layer.index < len(names) and operators[layer.index].kind == layer.operator:
        return names[layer.index]
    return record.names.of(layer.name)


def first_layer(
    sides: Mapping[str, Outcome], casts: Collection[str] = ()
) -> tuple[LayerDifference | None, str]:
    """The first layer that differs on the samples that differ most, or the reason why it is unknown.

    ``casts`` are operators that only convert types: they cause no difference themselves.
    """
    opaque = [name for name, outcome in sides.items() if not outcome.layers]
    if opaque:
        return None, f"{' and '.join(opaque)} cannot return layer outputs"
    one, other = sides.values()
    compared = 0
    for index, info, values, others in _aligned(one, other):
        compared += 1
        largest = layer_difference(values, others)
        if largest is not None:
            # Only conversions follow: the difference arose inside an operator that neither runtime shows.
            if all(later["operator"] in casts for later in one.layer_infos[index:]):
                return None, _unknown_inside(compared - 1)
            kind = "max_steps" if np.issubdtype(values.dtype, np.integer) else "max_error"
            return LayerDifference(
                index=index, name=info["name"], operator=info["operator"], **{kind: largest}
            ), ""
    if not compared:
        return None, "the two runtimes have no layer in common"
    return (
        None,
        "no layer differs by more than float rounding; kernels may differ when layer outputs are kept",
    )


def steps_in_front(
    sides: Mapping[str, Outcome], casts: Collection[str], magnifying: Collection[str]
) -> tuple[int, str] | None:
    """The largest difference in steps in front of a final ``magnifying`` operator, and that operator.

    None if the last operator, apart from ``casts``, is another, or the layer in front of it is unknown.
    """
    aligned = [layer for layer in _aligned(*sides.values()) if layer[1]["operator"] not in casts]
    if len(aligned) < 2 or aligned[-1][1]["operator"] not in magnifying:
        return None
    *_, (place, _, values, others), (end, last, outputs, _) = aligned
    if place + 1 != end or values.shape != outputs.shape or not np.issubdtype(values.dtype, np.integer):
        return None
    return int(layer_difference(values, others) or 0), last["operator"]


def _aligned(one: Outcome, other: Outcome) -> Iterator[tuple[int, LayerInfo, Array, Array]]:
    """The layers that both runtimes have in the same form: place and description in the first, and values."""
    positions = {key: index for index, key in enumerate(_keys(other))}
    for index, (info, key) in enumerate(zip(one.layer_infos, _keys(one), strict=True)):
        if key not in positions:
            continue  # fused into another operator by the other runtime
        values, others = one.layers[index], other.layers[positions[key]]
        if values.shape == others.shape and values.dtype == others.dtype:
            yield index, info, values, others


def _keys(side: Outcome) -> list[str]:
    """What identifies the layers: names, or places where these are not unique, as in slimmed files."""
    counts = Counter(info["name"] for info in side.layer_infos)
    return [
        info["name"] if info["name"] and counts[info["name"]] == 1 else f"{info['name']}#{index}"
        for index, info in enumerate(side.layer_infos)
    ]


def _unknown_inside(same: int) -> str:
    """The note for outputs that differ only in their final conversion."""
    if not same:
        return "the outputs differ; the inner layers of the runtimes could not be compared"
    return f"the outputs differ; the {same} comparable inner layers are equal"


def layer_difference(values: Array, others: Array) -> float | int | None:
    """Largest difference of two outputs of a layer; None if they are equal up to float rounding."""
    old, new = values.astype(np.float64), others.astype(np.float64)
    worst = float(distance(old, new).max(initial=0.0))
    if np.issubdtype(values.dtype, np.floating):
        magnitude = float(np.abs(old[np.isfinite(old)]).max(initial=0.0))
        return worst if worst > FLOAT_NOISE * magnitude else None
    return int(worst) if worst else None
