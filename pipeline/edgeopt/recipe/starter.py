"""Starter recipes: YAML with all that a model file declares, and marks where it must be completed."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.known import artifact_formats, factory_format
from edgeopt.formats.source import check_weights, inspect, is_weights
from edgeopt.model import TensorSpec
from edgeopt.plugin import Source
from edgeopt.recipe.planner import reachable

_EXAMPLE = TensorSpec(name="image", shape=(1, 3, 224, 224), layout="NCHW")


def starter_recipe(source_path: Path, *, folder: Path | None = None, trust: bool = False) -> str:
    """Commented YAML for the model or torch checkpoint at ``source_path``.

    ``folder`` is the folder of the recipe: paths are relative to it. Lines to fill in are marked ``CHANGE``.

    Raises:
        UsageError: as :func:`edgeopt.formats.source.inspect`, or the file is already converted.
    """
    if is_weights(source_path):
        notes = check_weights(source_path, trust=trust)
        # A checkpoint declares neither the network nor its inputs.
        model = _factory(_yaml_path(source_path, folder))
        inputs: tuple[TensorSpec, ...] = (_EXAMPLE,)
        outputs: tuple[TensorSpec, ...] = ()
        classifies = True
        formats = _reachable(factory_format())
    else:
        source = inspect(source_path, trust=trust)
        formats = _reachable(source.model.format)
        if set(formats) <= {source.model.format}:
            raise UsageError(
                f"{source_path} is already {source.model.format}: there is nothing to convert",
                fix=f"measure it: edgeopt profile {source_path}",
            )
        notes = source.notes
        model = _model_file(source, _yaml_path(source_path, folder))
        inputs = source.model.inputs or (_EXAMPLE,)
        outputs = source.model.outputs
        classifies = _classifies(source)
    name = re.sub(r"[^a-z0-9]+", "-", source_path.stem.lower()).strip("-") or "model"
    lines = [
        "# A starter recipe. Edit the lines marked CHANGE; then `edgeopt plan` shows what would run",
        "# and `edgeopt optimize` runs it.",
        *(f"# Note: {note}" for note in notes),
        "version: 1",
        f"name: {json.dumps(name)}",
        "model:",
        *model,
        *_preprocess(inputs),
        *_LABELS,
        *(["  trust: true"] if trust else []),
        *_data(inputs, classifies),
        *(_TOP1 if classifies else _tasks(outputs)),
        *_VARIANTS,
        f"formats: [{', '.join(formats)}]",
        *_END,
        _DROP if classifies else _FIDELITY,
        _SIZE,
    ]
    return "\n".join(lines) + "\n"


def _reachable(source: str) -> list[str]:
    """The artifact formats that a float model can be converted to."""
    targets = reachable(source, ())
    return [name for name in artifact_formats() if name in targets]


def _yaml_path(path: Path, folder: Path | None) -> str:
    base = (folder or Path.cwd()).resolve()
    relative = os.path.relpath(path.resolve(), base)
    # A JSON string is a valid YAML string, whatever characters the file name contains.
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


def _model_file(source: Source, path: str) -> list[str]:
    inputs = source.model.inputs
    lines = [f"  path: {path}"]
    if not inputs:
        return lines + _inputs([_EXAMPLE], "the shape and name of the input; the file does not declare them")
    declared = "; ".join(
        f"{spec.name} {json.dumps(list(spec.shape))} {spec.dtype}{' ' + spec.layout if spec.layout else ''}"
        for spec in inputs
    )
    lines.append(f"  # Inputs declared by the file: {declared}")
    if any(size is None for spec in inputs for size in spec.shape[1:]):
        fixed = [spec.model_copy(update={"shape": _fixed(spec)}) for spec in inputs]
        lines += _inputs(fixed, "artifacts have fixed sizes; 224 replaces each dynamic dimension")
    return lines


def _fixed(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one sample; the free axis of a state of several layers, its second, is the batch."""
    fixed = [224 if size is None else size for size in spec.shape]
    for axis, size in enumerate(spec.shape[:2]):
        if size is None:
            fixed[axis] = 1
            break
    return tuple(fixed)


def _inputs(specs: list[TensorSpec], comment: str) -> list[str]:
    lines = [f"  inputs:   # CHANGE: {comment}"]
    for spec in specs:
        layout = f", layout: {spec.layout}" if spec.layout else ""
        lines.append(
            f"    - {{name: {json.dumps(spec.name)}, shape: {list(spec.shape)}, dtype: {spec.dtype}{layout}}}"
        )
    return lines


def _preprocess(inputs: Sequence[TensorSpec]) -> list[str]:
    """The preprocessing to uncomment: of the only input, or of each by its name."""
    lines = [
        "  # Conversion of raw samples to model input, exactly as in training: (x * scale - mean) / std."
    ]
    if len(inputs) == 1:
        return [
            *lines,
            "  # CHANGE unless the data is model input already; layout is the layout of the data.",
            f"  # preprocess: {{{_IMAGENET}}}",
        ]
    lines += [
        "  # CHANGE unless the data is model input already; layout is the layout of the data. Inputs that",
        "  # are not listed stay as they are, such as tokens and masks.",
        "  # preprocess:",
    ]
    for spec in inputs:
        if spec.layout:
            lines.append(f"  #   {_key(spec.name)}: {{{_IMAGENET}}}")
        elif not spec.takes_integers:
            lines.append(f"  #   {_key(spec.name)}: {{scale: 1, mean: [0], std: [1]}}")
        else:
            lines.append(f"  #   {_key(spec.name)}: {{}}   # {spec.dtype}")
    return lines


def _classifies(source: Source) -> bool:
    """Whether the outputs look like the scores of classes, or nothing is known about them."""
    outputs = source.model.outputs
    if len(outputs) == 1 and len(outputs[0].shape) > 0:
        return len(outputs[0].shape) == 2 and outputs[0].shape[1] != 1 and not outputs[0].takes_integers
    return not outputs and source.output_count in (None, 1)


def _tasks(outputs: Sequence[TensorSpec]) -> list[str]:
    """Tasks and metrics to uncomment, guessed from the shapes of the outputs."""
    lines = [
        "# Artifacts are compared with the model itself. CHANGE to judge them against labels as well: say",
        "# what outputs mean, by tasks and metrics (docs/tasks), and name the labels in data, not null.",
    ]
    if not outputs:
        return [*lines, "# metric: top1"]
    known = [(_key(spec.name), *_meaning(spec)) for spec in outputs]
    lines.append("# tasks: {" + ", ".join(f"{name}: {task}" for name, task, _ in known) + "}")
    metrics = ", ".join(
        f"{{uses: {metric}, of: {name}, name: {metric}_{at}}}" for at, (name, _, metric) in enumerate(known)
    )
    return [*lines, f"# metric: [{metrics}]"]


def _meaning(spec: TensorSpec) -> tuple[str, str]:
    """The task, and a metric of it, that an output of this shape most often has."""
    if len(spec.shape) == 2 and spec.shape[1] != 1:
        return "classification", "top1"
    return ("segmentation", "miou") if len(spec.shape) == 4 else ("regression", "mae")


def _data(inputs: Sequence[TensorSpec], labelled: bool) -> list[str]:
    """The datasets, with the names of several inputs."""
    if len(inputs) == 1:
        arrays, keys = "samples x [n, ...]", ""
    else:
        arrays = "one array [n, ...] per input, whose key follows its name,"
        keys = ", inputs: {" + ", ".join(f"{_key(spec.name)}: {_key(spec.name)}" for spec in inputs) + "}"
    if labelled:
        arrays += " and class indices y [n]."
    else:
        arrays, keys = arrays.rstrip(",") + ".", f"{keys}, label: null"
    return [
        "data:",
        f"  # CHANGE: .npz files with {arrays}",
        "  # Paths are looked up beside this recipe, then under --data-root (default: EDGEOPT_DATA).",
        "  # Calibration sets the int8 ranges: 100 to 500 representative training samples.",
        f"  calibration: {{uses: npz, with: {{path: calibration.npz{keys}}}}}",
        "  # Evaluation judges every artifact, on samples that were not used in training.",
        f"  evaluation: {{uses: npz, with: {{path: evaluation.npz{keys}}}}}",
    ]


def _key(name: str) -> str:
    """A name as a key in YAML."""
    return name if name.isidentifier() and name.lower() not in _NO_KEYS else json.dumps(name)


_IMAGENET = "scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], layout: NHWC"
_NO_KEYS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Words that YAML reads as other values, in any case."""
_LABELS = (
    "  # Class names, in the order of the outputs, for reports and firmware.",
    "  # labels: [CHANGE, ...]",
)
_TOP1 = ("metric: top1",)
_VARIANTS = (
    "# Each entry is a variant; float is the baseline that the others are compared with.",
    "optimize:",
    "  float: {}",
    "  int8: {quantize: int8}",
    "  # For a microcontroller, instead of the line above: integer inputs and outputs save memory.",
    "  # int8: {quantize: {scheme: int8, io: int8}}",
)
_END = (
    "devices: [host]",
    "# A gate that does not pass makes the exit code 1.",
    "gates:",
)
_DROP = "  - {metric: top1, max_drop: 0.01}   # at most one point below the source model"
_FIDELITY = "  - {metric: fidelity_snr_db, min: 20}   # the error of each output: at most a tenth of its size"
_SIZE = "  # - {metric: size_bytes, max: 64 KiB, formats: [tflite], variants: [int8]}"
