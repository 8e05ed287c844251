"""The text of a starter recipe: what is known is written down, the rest is marked ``CHANGE``."""

import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeopt.config import registry
from edgeopt.config.text import as_name
from edgeopt.model import TensorSpec
from edgeopt.plugin import Dataset
from edgeopt.recipe.starter.meaning import UNKNOWN, Meaning, likely
from edgeopt.results import GUESSES

EXAMPLE = TensorSpec(name="image", shape=(1, 3, 224, 224), layout="NCHW")
WIDTH = 110
FACTORY = "my_network:build"
"""The example of a factory that is not known yet."""


@dataclass(frozen=True)
class Draft:
    """What is known about a model, its data and its targets. None stands for what must be filled in."""

    source: Path
    formats: tuple[str, ...]
    is_weights: bool = False
    factory: str | None = None
    declared: tuple[TensorSpec, ...] = ()
    """The inputs that the file declares."""
    inputs: tuple[TensorSpec, ...] = ()
    """The inputs to write down; empty if those of the file suffice."""
    doubtful: str = ""
    """Why these inputs must be checked."""
    outputs: tuple[TensorSpec, ...] | None = None
    calibration: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    random: bool = False
    """Whether to do without data."""
    preprocess: Mapping[str, Any] | None = None
    assumed: bool = False
    """Whether this preprocessing is an example only, and must be checked."""
    labels: tuple[str, ...] = ()
    meaning: Meaning = UNKNOWN
    stated: bool = False
    """Whether settings state what the outputs mean."""
    variants: Mapping[str, Mapping[str, Any]] | None = None
    devices: tuple[str, ...] = ("host",)
    target: str | None = None
    """The kind of device that the artifacts are for, if none is measured."""
    guessed: Mapping[str, str] = field(default_factory=dict)
    """Keys of the recipe that are guessed, and how."""
    notes: tuple[str, ...] = ()
    trust: bool = False

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return self.inputs or self.declared


def guess(draft: Draft, key: str, how: str) -> Draft:
    """With a note that a key of the recipe is guessed, which every run of the recipe repeats."""
    note = f"{GUESSES[key]} {how}"
    return replace(draft, guessed={**draft.guessed, key: how}, notes=(*draft.notes, note))


def recipe_text(draft: Draft, folder: Path | None = None) -> str:
    """Commented YAML; paths are relative to ``folder``, that of the recipe, if they are below it."""
    base = (folder or Path.cwd()).resolve()
    known = draft.random or (draft.evaluation is not None and not draft.assumed)
    head = (
        ["# Written by edgeopt from a model file; it runs as it is, and every line may be changed."]
        if known
        else [
            "# A starter recipe. Edit the lines marked CHANGE; then `edgeopt plan` shows what would run",
            "# and `edgeopt optimize` runs it.",
        ]
    )
    lines = [
        *head,
        *(
            line
            for note in draft.notes
            if not note.startswith(tuple(GUESSES.values()))  # the last lines
            for line in _comment(f"Note: {note}")
        ),
        "version: 1",
        f"name: {json.dumps(as_name(draft.source.stem))}",
        "model:",
        *_model(draft, base),
        *_preprocess(draft),
        *_labels(draft),
        *(["  trust: true"] if draft.trust else []),
        *_data(draft, base),
        *_tasks(draft),
        *_variants(draft, base),
        f"formats: [{', '.join(draft.formats)}]",
        f"devices: [{', '.join(draft.devices)}]",
        *([f"target: {draft.target}   # which these devices stand in for"] if draft.target else []),
        "# A gate that does not pass makes the exit code 1.",
        "gates:",
        *_gates(draft),
        *_guessed(draft),
    ]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent="# ",
        subsequent_indent="#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _model(draft: Draft, base: Path) -> list[str]:
    path = flow(draft.source, base)
    if draft.is_weights:
        factory = [f"  factory: {json.dumps(draft.factory or FACTORY)}", "  arguments: {}"]
        if draft.factory is None:
            factory[:0] = [
                "  # A checkpoint holds weights, not the network. CHANGE: the function that builds it, in a",
                "  # Python file beside this recipe (my_network.py), and the arguments it is called with.",
            ]
        return [*factory, f"  weights: {path}", *_inputs(draft)]
    lines = [f"  path: {path}"]
    if draft.declared:
        declared = "; ".join(
            " ".join([key(spec.name), json.dumps(list(spec.shape)), spec.dtype, *filter(None, [spec.layout])])
            for spec in draft.declared
        )
        lines.append(f"  # Inputs declared by the file: {declared}")
    return lines + _inputs(draft)


def _inputs(draft: Draft) -> list[str]:
    if not draft.inputs:
        return []
    lines = [f"  inputs:   # CHANGE: {draft.doubtful}" if draft.doubtful else "  inputs:"]
    for spec in draft.inputs:
        layout = f", layout: {spec.layout}" if spec.layout else ""
        shape = json.dumps(list(spec.shape))
        lines.append(f"    - {{name: {json.dumps(spec.name)}, shape: {shape}, dtype: {spec.dtype}{layout}}}")
    return lines


def _preprocess(draft: Draft) -> list[str]:
    """The preprocessing if it is known, or to uncomment: of the only input, or of each by its name."""
    if draft.random:
        return []
    lines = [
        "  # Conversion of raw samples to model input, exactly as in training: (x * scale - mean) / std."
    ]
    if draft.preprocess is not None:
        mark = "   # CHANGE: as in training" if draft.assumed else ""
        return [*lines, f"  preprocess: {flow(draft.preprocess)}{mark}"] if draft.preprocess else []
    layout = "layout is the layout of the data."
    if len(draft.specs) == 1:
        return [
            *lines,
            f"  # CHANGE unless the data is model input already; {layout}",
            f"  # preprocess: {{{_IMAGENET}}}",
        ]
    lines += [
        f"  # CHANGE unless the data is model input already; {layout} Inputs that",
        "  # are not listed stay as they are, such as tokens and masks.",
        "  # preprocess:",
    ]
    for spec in draft.specs:
        if spec.layout:
            lines.append(f"  #   {key(spec.name)}: {{{_IMAGENET}}}")
        elif not spec.takes_integers:
            lines.append(f"  #   {key(spec.name)}: {{scale: 1, mean: [0], std: [1]}}")
        else:
            lines.append(f"  #   {key(spec.name)}: {{}}   # {spec.dtype}")
    return lines


def _labels(draft: Draft) -> list[str]:
    if draft.random:
        return []
    about = "  # Class names, in the order of the outputs, for reports and firmware."
    if draft.labels:
        return [about, f"  labels: {flow(draft.labels)}"]
    if draft.evaluation is not None and draft.meaning.classes is None:
        return []
    return [about, "  # labels: [CHANGE, ...]" if draft.evaluation is None else "  # labels: [name, ...]"]


def _data(draft: Draft, base: Path) -> list[str]:
    """The datasets; those to fill in with the names of several inputs, and every other kind of data."""
    if draft.random:
        return [
            "# Without data, outputs are compared on random inputs. With samples: edgeopt optimize --data"
        ]
    if draft.evaluation is not None:
        parts = {"calibration": draft.calibration, "evaluation": draft.evaluation}
        return ["data:", *(f"  {name}: {flow(use, base)}" for name, use in parts.items() if use)]
    if len(draft.specs) == 1:
        arrays, keys = "samples x [n, ...]", ""
    else:
        arrays = "one array [n, ...] per input, whose key follows its name,"
        keys = ", inputs: {" + ", ".join(f"{key(spec.name)}: {key(spec.name)}" for spec in draft.specs) + "}"
    if draft.meaning.labelled:
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
        "  # Other kinds of data, with their options in docs/recipe.md:",
        *(f"  #   {line}" for line in _kinds()),
    ]


def _kinds() -> list[str]:
    """Every other kind of data, with its required options."""
    kinds = registry.plugins(Dataset)
    lines = []
    for name, kind in kinds.items():
        if name in ("npz", "digits"):
            continue
        required = [option for option, field in kind.model_fields.items() if field.is_required()]
        about = (sys.modules[kind.__module__].__doc__ or "").partition("\n")[0]
        options = ", ".join(f"{option}: ..." for option in required)
        lines.append(f"{{uses: {name}, with: {{{options}}}}}   # {about}")
    return lines


def _tasks(draft: Draft) -> list[str]:
    """Task and metric; without labels, those to uncomment, guessed from the shapes of the outputs."""
    if draft.meaning.metric:
        return [f"metric: {draft.meaning.metric}"]  # its task is found by it
    if draft.random or draft.stated:
        return []
    lines = [
        "# Artifacts are compared with the model itself. CHANGE to judge them against labels as well: say",
        "# what outputs mean, by tasks and metrics (docs/tasks), and name the labels in data, not null.",
    ]
    if not draft.outputs:
        return [*lines, "# metric: top1"]
    found = [(key(spec.name), *likely(spec)) for spec in draft.outputs]
    lines.append("# tasks: {" + ", ".join(f"{name}: {task}" for name, task, _ in found) + "}")
    metrics = ", ".join(
        f"{{uses: {metric}, of: {name}, name: {metric}_{at}}}" for at, (name, _, metric) in enumerate(found)
    )
    return [*lines, f"# metric: [{metrics}]"]


def _variants(draft: Draft, base: Path) -> list[str]:
    about = "# Each entry is a variant; float is the baseline that the others are compared with."
    if draft.variants is not None:
        rows = [f"  {name}: {flow(options, base)}" for name, options in draft.variants.items()]
        return [about, "optimize:", "  float: {}", *rows]
    return [
        about,
        "optimize:",
        "  float: {}",
        "  int8: {quantize: int8}",
        "  # For a microcontroller, instead of the line above: integer inputs and outputs save memory.",
        "  # int8: {quantize: {scheme: int8, io: int8}}",
    ]


def _gates(draft: Draft) -> list[str]:
    if draft.random:
        # What random inputs show of quantization depends on their range, which is not that of real data.
        lines = ["  - {metric: fidelity_snr_db, min: 40, variants: [float]}   # the conversions are exact"]
    elif draft.meaning.is_fraction:
        metric = draft.meaning.metric
        lines = [f"  - {{metric: {metric}, max_drop: 0.01}}   # at most one point below the source model"]
    else:
        lines = [
            "  - {metric: fidelity_snr_db, min: 20}   # the error of each output: at most a tenth of its size"
        ]
    if draft.variants is None:
        lines.append("  # - {metric: size_bytes, max: 64 KiB, formats: [tflite], variants: [int8]}")
    return lines


def _guessed(draft: Draft) -> list[str]:
    if not draft.guessed:
        return []
    about = "# What edgeopt guessed: every report repeats it. Remove an entry once you have checked its key."
    return [about, "guessed:", *(f"  {key}: {json.dumps(how)}" for key, how in draft.guessed.items())]


def key(name: str) -> str:
    """A name as a key in YAML."""
    return name if name.isidentifier() and name.lower() not in _NO_KEYS else json.dumps(name)


def flow(value: object, base: Path | None = None) -> str:
    """A value as YAML in one line; paths below ``base`` are written relative to it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key(str(name))}: {flow(each, base)}" for name, each in value.items()) + "}"
    if isinstance(value, Path):
        whole = Path(os.path.abspath(value))
        inside = whole.is_relative_to(base) if base else False
        # A JSON string is a valid YAML string, whatever characters the file name contains.
        return json.dumps((whole.relative_to(base) if inside and base else whole).as_posix())
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w.-]*|\d+/\d+", value) and value.lower() not in _NO_KEYS
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Sequence):
        return "[" + ", ".join(flow(each, base) for each in value) + "]"
    return json.dumps(value)


_IMAGENET = "scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], layout: NHWC"
_NO_KEYS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Words that YAML reads as other values, in any case."""
