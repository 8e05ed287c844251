"""The same file and inputs on several devices: how far their outputs are apart, and from which layer on."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
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
from edgeopt.formats.source import inspect
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset
from edgeopt.run.bench import Bench, Evaluation
from edgeopt.run.outcome import Outcome
from edgeopt.run.store import Store

FLOAT_NOISE = 1e-5
"""Share of a layer's largest value: what another order of float32 sums makes of it, and no more."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerDifference(_Value):
    """The first operator, in the order of execution, whose output is not the same."""

    index: int = Field(description="operators before it gave the same")
    name: str
    operator: str
    max_error: float | None = Field(None, description="largest difference, for a layer of real numbers")
    max_steps: int | None = Field(None, description="largest difference in quantized units")


class DeviceParity(_Value):
    """One device, held against the first."""

    device: str
    runtime: str = ""
    emulated: bool = False
    status: Literal["ok", "failed", "skipped"] = "ok"
    reason: str = ""
    differing: int | None = Field(None, description="samples with any difference")
    max_error: float | None = None
    max_steps: int | None = Field(None, description="largest difference of an output in quantized units")
    flips: int | None = Field(None, description="samples with another largest output")
    layer: LayerDifference | None = None
    layer_note: str = ""


class Parity(_Value):
    """A file on several devices; the first is what the others are held against."""

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
    preprocessing: Preprocessing | None = None,
    inputs: tuple[TensorSpec, ...] = (),
) -> Parity:
    """Run one file on every device with the same inputs and compare with the first device.

    Args:
        file: a .tflite, .onnx, .ptl or .pte file.
        devices: names of devices or device files, at least two.
        dataset: samples to run; without one, seeded random inputs are used.
        preprocessing: from raw sample to model input; default none.
        inputs: for formats that do not tell what they take.

    Raises:
        UsageError: the file is no model, or the first device has no runtime for it.
        DeviceError: the first device cannot be reached, or refuses the file.
    """
    if len(devices) < 2:
        raise UsageError("parity compares devices: name at least two", fix="--devices host,arm64-emulated")
    path = Path(file)
    targets = [load_device(name, device_folders) for name in devices]
    model = inspect(path).model
    model = model.model_copy(update={"inputs": inputs or model.inputs})
    if model.format not in targets[0].runtimes:
        raise UsageError(
            f"device {targets[0].name} has no runtime for {model.format}", fix="begin with one that has"
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
            told = reference.error or "it compiles, and gives no outputs"
            raise DeviceError(f"{path.name} on {targets[0].name}: {told}")
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
        samples=len(reference.outputs[0]),
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
        return DeviceParity(status="skipped", reason=f"it has no runtime for {model.format}", **common)
    bench = Bench(target, agent, store).open()
    outcome = bench.run(model, evaluation)
    common["runtime"] = outcome.runtime
    if outcome.error:
        status = "skipped" if outcome.unreachable else "failed"
        return DeviceParity(status=status, reason=outcome.error, **common)
    if not outcome.outputs:
        return DeviceParity(status="skipped", reason="it compiles, and gives no outputs", **common)
    try:
        found = difference(reference.outputs, outcome.outputs, reference.output_scales)
    except UsageError as error:
        return DeviceParity(status="failed", reason=error.message, **common)
    layer, note = None, ""
    if found.differing:
        sides = {side.device.name: side.run(model, evaluation, layers=found.worst) for side in (first, bench)}
        layer, note = first_layer(sides, format_named(model.format).casts)
    return DeviceParity(
        differing=found.differing,
        max_error=found.max_error,
        max_steps=found.max_steps,
        flips=found.flips,
        layer=layer,
        layer_note=note,
        **common,
    )


def first_layer(
    sides: Mapping[str, Outcome], casts: Collection[str] = ()
) -> tuple[LayerDifference | None, str]:
    """The first layer that differs on the samples that differ most, or why it is not known.

    ``casts`` are operators that only write values in another type: they make no difference of their own.
    """
    silent = [name for name, outcome in sides.items() if not outcome.layers]
    if silent:
        return None, f"{' and '.join(silent)} cannot tell what the layers give"
    one, other = sides.values()
    there = {told["name"]: index for index, told in enumerate(other.layer_infos)}
    compared = 0
    for index, told in enumerate(one.layer_infos):
        if told["name"] not in there:
            continue  # the other runtime made one operator of several
        values, others = one.layers[index], other.layers[there[told["name"]]]
        if values.shape != others.shape or values.dtype != others.dtype:
            continue
        compared += 1
        apart = layer_difference(values, others)
        if apart is not None:
            if all(later["operator"] in casts for later in one.layer_infos[index:]):
                return None, _unknown_inside(compared - 1)
            kind = "max_steps" if np.issubdtype(values.dtype, np.integer) else "max_error"
            return LayerDifference(
                index=index, name=told["name"], operator=told["operator"], **{kind: apart}
            ), ""
    if not compared:
        return None, "the two runtimes have no layer in common"
    return None, "no layer differs by more than float rounding; keeping layers may take other kernels"


def _unknown_inside(same: int) -> str:
    """What can be said where only the conversion of the outputs differs."""
    if not same:
        return "the outputs differ; the runtimes' inner layers could not be compared"
    return f"the outputs differ; the {same} inner layers that could be compared are the same"


def layer_difference(values: Array, others: Array) -> float | int | None:
    """Largest difference of two arrays of one layer; None if they are the same, but for float rounding."""
    old, new = values.astype(np.float64), others.astype(np.float64)
    worst = float(distance(old, new).max(initial=0.0))
    if np.issubdtype(values.dtype, np.floating):
        size = float(np.abs(old[np.isfinite(old)]).max(initial=0.0))
        return worst if worst > FLOAT_NOISE * size else None
    return int(worst) if worst else None
