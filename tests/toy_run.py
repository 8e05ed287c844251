"""Synthetic run folders: a tiny model file, its record, golden vectors and a report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.config.files import file_digest
from edgeopt.evaluation.samples import fitted
from edgeopt.model import Array, Preprocessing, TensorSpec
from edgeopt.publish.bundle import make_bundle, publishable
from edgeopt.publish.contract import Contract
from edgeopt.results import Artifact, Report, Result, Run, SourceResult
from toy_operators import operator, write

CHAIN = ("keras_to_tflite", "quantize_tflite")
PIXELS = TensorSpec(
    name="image", shape=(1, 16, 16, 3), dtype="int8", layout="NHWC", scale=0.018658, zero_point=-14
)
NORMALIZED = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = TensorSpec(name="classes", shape=(1, 5), dtype="int8", scale=1 / 256, zero_point=-128)


def every_value(dtype: str, shape: tuple[int, ...], count: int = 3) -> Array:
    """Samples ``[count, *shape]`` in which every channel has every value of a type, if they fit."""
    random = np.random.default_rng(7)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (random.standard_normal((count, *shape)) * 100).astype(kind)
    if kind == np.bool_:
        return random.integers(0, 2, (count, *shape)).astype(kind)
    limits = np.iinfo(kind)
    if kind.itemsize > 2:
        return random.integers(-(2**30), 2**30, (count, *shape)).astype(kind)
    values = np.arange(limits.min, limits.max + 1)
    plane, channels = int(np.prod(shape[:-1])), shape[-1]
    samples = np.empty((count, plane, channels), kind)
    for sample in range(count):
        for channel in range(channels):
            filled = np.resize(random.permutation(values), plane)
            samples[sample, :, channel] = random.permutation(filled)
    return samples.reshape(count, *shape)


def write_run(
    folder: Path,
    *,
    operators: Sequence[str] = ("CONV_2D", "SOFTMAX"),
    inputs: Sequence[TensorSpec] = (PIXELS,),
    outputs: Sequence[TensorSpec] = (CLASSES,),
    how: Preprocessing | Sequence[Preprocessing] = NORMALIZED,
    raw: Sequence[Array] | None = None,
    labels: Sequence[str] = (),
    device: str = "cortex-m",
    runtime: str = "tflm 1.0",
    golden_of: str | None = "",
    measured: dict[str, float] | None = None,
    format_name: str = "tflite",
    model: bytes | None = None,
) -> Report:
    """Write a run with one result.

    ``how``: the preprocessing of all inputs, or of each. ``golden_of``: the device of its golden vectors, or
    None.
    """
    (folder / "models").mkdir(parents=True)
    suffix = {"tflite": ".tflite", "onnx": ".onnx", "torchscript": ".ptl", "executorch": ".pte"}[format_name]
    path = folder / "models" / f"int8{suffix}"
    if model is None:
        chain = [operator(kind, weighted=kind == "CONV_2D") for kind in operators]
        write(path, *chain, shape=(1, 4, 4, 2), types=("int8", "int8"))
    else:
        path.write_bytes(model)
    record = {
        "inputs": [spec.model_dump(mode="json") for spec in inputs],
        "outputs": [spec.model_dump(mode="json") for spec in outputs],
        "preprocessing": [each.model_dump(mode="json") for each in how]
        if isinstance(how, Sequence)
        else how.model_dump(mode="json"),
        "labels": list(labels),
    }
    path.with_name(f"{path.name}.json").write_text(json.dumps(record))
    if golden_of is not None:
        given = raw if raw is not None else [every_value("uint8", (16, 16, 3))]
        vectors = golden_arrays(inputs, outputs, how, given)
        (folder / "golden").mkdir()
        np.savez(folder / "golden" / f"int8.{format_name}.{golden_of or device}.npz", **vectors)
    values = {"size_bytes": path.stat().st_size, "arena_bytes": 9000, "top1": 0.9} | (measured or {})
    result = Result(
        variant="int8",
        format=format_name,
        device=device,
        status="ok",
        artifact=Artifact(
            path=f"models/{path.name}", digest=file_digest(path), size_bytes=path.stat().st_size
        ),
        measurements={name: {"value": value, "n": 100} for name, value in values.items()},
        chain=CHAIN,
        runtime=runtime,
    )
    report = Report(
        recipe="toy",
        run=Run(
            started="2026-01-01T00:00:00",
            seconds=1.0,
            command="edgeopt",
            edgeopt="0.1.0",
            samples=100,
            document="name: toy\n",
        ),
        source=SourceResult(format="keras", path="toy.keras", digest="0" * 64),
        results=(result,),
    )
    (folder / "report.json").write_text(report.model_dump_json(by_alias=True))
    return report


def golden_arrays(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    how: Preprocessing | Sequence[Preprocessing],
    raw: Sequence[Array],
) -> dict[str, Any]:
    """Golden arrays for these samples, with synthetic outputs."""
    random = np.random.default_rng(3)
    count = len(raw[0])
    arrays: dict[str, Any] = {f"raw_{index}": values for index, values in enumerate(raw)}
    for index, (spec, values) in enumerate(zip(inputs, raw, strict=True)):
        steps = how[index] if isinstance(how, Sequence) else how
        arrays[f"input_{index}"] = np.concatenate([fitted(sample, steps, spec, "toy") for sample in values])
    for index, spec in enumerate(outputs):
        shape = (count, *(size or 1 for size in spec.shape[1:]))
        kind = np.dtype(spec.dtype)
        arrays[f"output_{index}"] = (
            random.integers(-100, 100, shape).astype(kind)
            if kind.kind == "i"
            else random.standard_normal(shape).astype(kind)
        )
    return arrays


def toy_bundle(folder: Path, name: str = "toy", **options: Any) -> tuple[Path, Contract]:
    """A bundle of such a run: its folder, and its contract."""
    report = write_run(folder / "run", **options)
    target = folder / "bundle"
    (row,) = publishable(report)
    return target, make_bundle(folder / "run", report, row, target, name=name, version="1.0.0")
