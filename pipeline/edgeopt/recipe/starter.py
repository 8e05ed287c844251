"""The text of a first recipe for a model file: everything the file tells, and what is left to fill in."""

import json
import os
import re
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.known import artifact_formats, factory_format
from edgeopt.formats.source import check_weights, inspect, is_weights
from edgeopt.model import TensorSpec
from edgeopt.plugin import Source
from edgeopt.recipe.planner import reachable

_EXAMPLE = TensorSpec(name="image", shape=(1, 3, 224, 224), layout="NCHW")


def starter_recipe(source_path: Path, *, folder: Path | None = None, trust: bool = False) -> str:
    """Commented YAML for the model, or torch checkpoint, at ``source_path``.

    ``folder`` is where the recipe will lie: paths are written relative to it. Lines to fill in are
    marked ``CHANGE``.

    Raises:
        UsageError: as :func:`edgeopt.formats.source.inspect`, and for a file that is converted already.
    """
    if is_weights(source_path):
        notes = check_weights(source_path, trust=trust)
        # Nothing in a checkpoint tells the network or its input.
        model = _factory(_written(source_path, folder))
        formats = _reachable(factory_format())
    else:
        source = inspect(source_path, trust=trust)
        if source.framework is None:
            raise UsageError(
                f"{source_path} is {source.model.format} already: there is nothing to convert",
                fix=f"measure it as it is: edgeopt profile {source_path}",
            )
        notes = source.notes
        model = _found(source, _written(source_path, folder))
        formats = _reachable(source.model.format)
    name = re.sub(r"[^a-z0-9]+", "-", source_path.stem.lower()).strip("-") or "model"
    lines = [
        "# A first recipe. Lines marked CHANGE need your answer; then `edgeopt plan` shows what would run",
        "# and `edgeopt optimize` runs it.",
        *(f"# Note: {note}" for note in notes),
        "version: 1",
        f"name: {json.dumps(name)}",
        "model:",
        *model,
        *_PREPROCESS,
        *_LABELS,
        *(["  trust: true"] if trust else []),
        *_DATA,
        f"formats: [{', '.join(formats)}]",
        *_END,
    ]
    return "\n".join(lines) + "\n"


def _reachable(source: str) -> list[str]:
    """What a float model of a format can become."""
    there = reachable(source, ())
    return [name for name in artifact_formats() if name in there]


def _written(path: Path, folder: Path | None) -> str:
    base = (folder or Path.cwd()).resolve()
    relative = os.path.relpath(path.resolve(), base)
    # JSON text is YAML text, whatever characters a file name has.
    return json.dumps(Path(relative if not relative.startswith("..") else path.resolve()).as_posix())


def _factory(weights: str) -> list[str]:
    return [
        "  # A checkpoint holds weights, not the network. CHANGE: the function that builds it, in a Python",
        "  # file beside this recipe (my_network.py), and the arguments it is called with.",
        '  factory: "my_network:build"',
        "  arguments: {}",
        f"  weights: {weights}",
        *_inputs([_EXAMPLE], "the shape and name of the network's input"),
    ]


def _found(source: Source, path: str) -> list[str]:
    inputs = source.model.inputs
    lines = [f"  path: {path}"]
    if not inputs:
        return lines + _inputs([_EXAMPLE], "the shape and name of the input; the file does not tell")
    told = "; ".join(
        f"{spec.name} {json.dumps(list(spec.shape))} {spec.dtype}{' ' + spec.layout if spec.layout else ''}"
        for spec in inputs
    )
    lines.append(f"  # The file tells its inputs: {told}")
    if any(size is None for spec in inputs for size in spec.shape[1:]):
        fixed = [spec.model_copy(update={"shape": _fixed(spec)}) for spec in inputs]
        lines += _inputs(fixed, "an artifact has fixed sizes; 224 stands where the file leaves one free")
    return lines


def _fixed(spec: TensorSpec) -> tuple[int, ...]:
    return (1, *(224 if size is None else size for size in spec.shape[1:]))


def _inputs(specs: list[TensorSpec], what: str) -> list[str]:
    lines = [f"  inputs:   # CHANGE: {what}"]
    for spec in specs:
        layout = f", layout: {spec.layout}" if spec.layout else ""
        lines.append(
            f"    - {{name: {json.dumps(spec.name)}, shape: {list(spec.shape)}, dtype: {spec.dtype}{layout}}}"
        )
    return lines


_PREPROCESS = (
    "  # What turns a raw sample into model input, exactly as in training: (x * scale - mean) / std.",
    "  # CHANGE where the data is not model input already; layout is the layout of the data.",
    "  # preprocess: {scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], layout: NHWC}",
)
_LABELS = (
    "  # Class names, in the order of the outputs: they get into reports and firmware.",
    "  # labels: [CHANGE, ...]",
)
_DATA = (
    "data:",
    "  # CHANGE: .npz files with samples x [n, ...] and class indices y [n]. Paths are looked up beside this",
    "  # recipe, then under --data-root (default: EDGEOPT_DATA).",
    "  # Calibration sets the ranges of int8: 100 to 500 training samples, like those of real use.",
    "  calibration: {uses: npz, with: {path: calibration.npz}}",
    "  # Evaluation judges every artifact: samples that the model never saw in training.",
    "  evaluation: {uses: npz, with: {path: evaluation.npz}}",
    "metric: top1",
    "# Each entry is a variant; float is the baseline that the others are compared with.",
    "optimize:",
    "  float: {}",
    "  int8: {quantize: int8}",
    "  # For a microcontroller, in place of the line above: integers in and out save memory.",
    "  # int8: {quantize: {scheme: int8, io: int8}}",
)
_END = (
    "devices: [host]",
    "# A gate that does not hold makes the exit code 1.",
    "gates:",
    "  - {metric: top1, max_drop: 0.01}   # at most one point below the source model",
    "  # - {metric: size_bytes, max: 64 KiB, formats: [tflite], variants: [int8]}",
)
