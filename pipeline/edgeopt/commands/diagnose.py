"""Diagnosis of a quantized variant: layer-by-layer comparison, causes, and a proposed change."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.commands.start import RECIPE, is_model
from edgeopt.config.nearest import nearest
from edgeopt.config.yaml_source import read_yaml, set_value
from edgeopt.devices.device import HOST, load_device
from edgeopt.errors import EdgeoptError, StageError, UsageError
from edgeopt.evaluation.diagnosis import Before, Diagnosis, Twin, causes, is_fine, propose
from edgeopt.evaluation.layer_causes import Changes
from edgeopt.evaluation.layer_comparison import Data
from edgeopt.formats.file_graph import graph_of
from edgeopt.formats.known import artifact_formats, format_named
from edgeopt.model import Model
from edgeopt.plugin import Feed, LayerView, Stage
from edgeopt.recipe.document import Use
from edgeopt.recipe.patch import patch_of, shown
from edgeopt.recipe.plan import Built, Plan
from edgeopt.recipe.planner import BASELINE, make_plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.resolve import find_recipe, load_recipe
from edgeopt.reports.history import REPORT
from edgeopt.results import GraphNode
from edgeopt.run import assemble
from edgeopt.run.build import build
from edgeopt.run.layer_worker import compare_apart
from edgeopt.run.measuring.session import build_and_measure
from edgeopt.run.preflight import check_data
from edgeopt.run.scoring import scorer_of
from edgeopt.run.source_names import Rename, source_names
from edgeopt.run.step_comparison import Watch, compare_steps, compare_whole, parts_of, quantizing
from edgeopt.run.store import Store, open_store

SAMPLES = 64
RECALIBRATION_LIMIT = 512
"""Samples of training or validation data to calibrate with in a proposed change."""

PRECISIONS = {"float16": "16 bits of float", "int4": "4 bits"}
"""Descriptions of the schemes that are not 8 bits wide."""


class Target(NamedTuple):
    """One variant of a recipe in one format."""

    recipe: str | Path
    variant: str
    format: str
    overrides: tuple[str, ...]
    data_root: Path | None
    device_folders: tuple[Path, ...]

    def load(self, patch: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe for this variant and the baseline on the host; ``patch`` replaces parts of it."""
        changes = [f"{part}={json.dumps(value)}" for part, value in (patch or {}).items()]
        loaded = load_recipe(
            self.recipe,
            overrides=[*self.overrides, *changes],
            data_root=self.data_root,
            device_folders=self.device_folders,
        )
        return replace(
            loaded,
            variants=tuple(v for v in loaded.variants if v.name in (BASELINE, self.variant)),
            formats=(self.format,),
            devices=(load_device(HOST, self.device_folders),),
            gates=(),
        )

    def document(self) -> dict[str, Any]:
        """The text of the recipe as data, with the overrides applied."""
        path = find_recipe(self.recipe)
        data, _ = read_yaml(path.read_text("utf-8"), str(path))
        for assignment in self.overrides:
            set_value(data, assignment)
        return dict(data)


def diagnose(
    recipe: str | Path,
    variant: str,
    format: str,
    *,
    samples: int = SAMPLES,
    apply: bool = False,
    store: Path | None = None,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
    watch: Watch = lambda event: None,
) -> Diagnosis:
    """Find the causes of a quantized variant's error, and propose a change to the recipe.

    Layers are compared on calibration data and, if the recipe has them, on validation or training data; the
    evaluation data is used only for the measurements before and after.

    Args:
        recipe: a recipe file, the name of a shipped recipe, or the folder of a run of a model.
        variant: a quantized variant of the recipe.
        format: onnx, tflite or executorch; of torchscript, the model as a whole.
        samples: number of samples to compare on.
        apply: build and measure the patched variant as well.
        store: folder of cached results; default ``EDGEOPT_STORE`` or ``artifacts/store``.
        overrides: ``key.key=value`` settings that replace those of the recipe.

    Raises:
        UsageError: the variant or format is unknown, unavailable or not quantized.
        StageError: the variant could not be built or compared.
    """
    target = Target(_recipe_of(recipe), variant, format, tuple(overrides), data_root, tuple(device_folders))
    loaded = target.load()
    view = _check(loaded, variant, format)
    plan = make_plan(loaded)
    plan.demand_possible()
    finished = open_store(store)
    check_data(plan)
    builds = {built.branch.variant: built for built in build(plan, finished, watch)}
    built = builds[variant]
    if not built.complete and not any(_quantizes(step.stage) for step in built.steps):
        raise StageError(f"{built.branch.name} could not be built: {built.failure}")
    data = _data(plan)
    names = source_names(plan, built)
    hops = compare_steps(plan, built, finished, target.device_folders, watch)
    twin: Twin | None = None
    if view is None:
        quantized, comparison = built.steps[-1].model, compare_whole(built, hops)
        twin = Twin(here=format, format=format_named(format).twin)
        if not is_fine(comparison):
            twin = _built_twin(twin, target, finished, watch)
    else:
        reference, quantized = _pair(builds, variant, view)
        comparison = compare_apart(view.worker, reference, quantized, data, samples, built.branch.name, watch)
        comparison = comparison.renamed(names.of)
    document = target.document()
    found_causes = causes(
        comparison, hops, _recalibrate(document, loaded), _precision(built), parts_of(built.steps), twin
    )
    changes = propose(found_causes, partial(_possible, target, document))
    patch = patch_of(document, variant, changes) or {}
    applied: tuple[Before, ...] = ()
    notes = list(_notes(loaded, data))
    if apply and patch:
        after = target.load(patch)
        applied = (
            _measured(loaded, variant, variant, finished, target.device_folders, watch),
            _measured(after, variant, f"{variant}, patched", finished, target.device_folders, watch),
        )
    elif apply:
        notes.append("nothing to apply: no change of the recipe is known to fix these causes")
    return Diagnosis(
        recipe=loaded.name,
        variant=variant,
        format=format,
        data=", ".join(part.name for part in data),
        comparison=comparison,
        steps=hops,
        causes=tuple(found_causes),
        patch=shown(patch, variant),
        notes=tuple(notes),
        graph=_graph(quantized, names.of),
        applied=applied,
    )


def _recipe_of(name: str | Path) -> str | Path:
    """The recipe: as given, or the one in the folder of a run.

    Raises:
        UsageError: the folder has none, or a model is given.
    """
    folder = Path(name)
    if not is_model(folder):
        return name
    if os.path.isfile(folder / RECIPE):
        return folder / RECIPE
    if os.path.isfile(folder / REPORT):
        raise UsageError(
            f"{folder} is a run of a recipe, which is elsewhere",
            fix="give the recipe: edgeopt diagnose RECIPE",
        )
    raise UsageError(
        f"{folder} is no recipe: a quantized variant is diagnosed with the recipe that builds it",
        fix=f"run it first: edgeopt optimize {folder} --int8 --out run, then: edgeopt diagnose run",
    )


def _graph(model: Model, rename: Rename) -> tuple[GraphNode, ...]:
    """The graph of a file, with the names of the source model."""
    kind = format_named(model.format)
    nodes = graph_of(kind, model.path, kind.breakdown(model.path))
    return tuple(node.model_copy(update={"name": rename(node.name)}) for node in nodes)


def _precision(built: Built) -> str:
    """The precision of the variant's weights and activations, in words."""
    schemes = [step.stage.options().get("scheme", "") for step in built.steps if _quantizes(step.stage)]
    return next((words for scheme in schemes for words in [PRECISIONS.get(str(scheme))] if words), "8 bits")


def _built_twin(twin: Twin, target: Target, store: Store, watch: Watch) -> Twin:
    """The same variant, built and compared in the other format, as far as that is possible."""
    try:
        plan = make_plan(target._replace(format=twin.format).load())
        plan.demand_possible()
        built = {each.branch.variant: each for each in build(plan, store, watch)}[target.variant]
        hops = compare_steps(plan, built, store, target.device_folders, watch)
    except EdgeoptError:  # it only adds to the diagnosis
        return twin
    return twin.model_copy(update={"quantized": quantizing(built, hops)})


def _check(recipe: Recipe, variant: str, format: str) -> LayerView | None:
    """The layer view of the format, once the request is known to be valid; None if a twin stands in for it.

    Raises:
        UsageError: the layers of the format cannot be compared, or the variant is unknown or not quantized.
    """
    quantized = [name for name in _variants(recipe) if name != BASELINE]
    if not variant:
        raise UsageError(f"--variant is missing; {recipe.file} has {', '.join(quantized) or 'only float'}")
    if not format:
        raise UsageError(f"--format is missing; {recipe.file} has {', '.join(_formats(recipe))}")
    if format not in artifact_formats():
        raise UsageError(f"no format {format!r}{nearest(format, artifact_formats())}")
    kind = format_named(format)
    if kind.layers is None and not kind.twin:
        raise UsageError(f"the layers of {kind.title} cannot be compared", fix=kind.no_layers)
    named = next((v for v in recipe.variants if v.name == variant), None)
    if named is None:
        raise UsageError(f"{recipe.file} has no variant {variant!r}{nearest(variant, quantized)}")
    by_intent = any(intent.name == "quantize" for intent in named.intents)
    by_stage = any(_quantizes(stage) for stage in named.stages or ())
    if not by_intent and not by_stage:
        raise UsageError(
            f"variant {variant!r} is not quantized: there is nothing to diagnose",
            fix="choose one with quantize; for others, the report of edgeopt optimize compares every step",
        )
    return kind.layers


def _variants(recipe: Recipe) -> list[str]:
    return [str(name) for name in (_written(recipe).get("optimize") or {})]


def _formats(recipe: Recipe) -> list[str]:
    formats = _written(recipe).get("formats") or ()
    return [formats] if isinstance(formats, str) else list(map(str, formats))


def _written(recipe: Recipe) -> dict[str, Any]:
    """The recipe before it was narrowed to one variant and format."""
    data, _ = read_yaml(recipe.file.read_text("utf-8"), str(recipe.file))
    return dict(data)


def _quantizes(stage: Stage) -> bool:
    return "quantize" in stage.fulfils


def _pair(builds: Mapping[str, Built], variant: str, view: LayerView) -> tuple[Model, Model]:
    """The float model and the quantized one, as built before names are stripped.

    If both are steps of the variant, earlier pruning and repairs are in both, so that only quantization
    differs. A model quantized in its framework has no such float step and is compared with the baseline.
    """
    steps = builds[variant].steps
    last = max(index for index, step in enumerate(steps) if _quantizes(step.stage))
    quantized = [step.model for step in steps[last:] if step.model.format in view.quantized]
    before = [step.model for step in steps[:last] if step.model.format == view.reference]
    before = before or [s.model for s in builds[BASELINE].steps if s.model.format == view.reference]
    if not quantized or not before:
        chain = " → ".join(step.model.format for step in steps)
        raise StageError(
            f"{builds[variant].branch.name} cannot be compared layer by layer: its steps produce {chain}",
            fix=f"required are a float {view.reference} file and one of {', '.join(view.quantized)}",
        )
    return before[-1], quantized[0]


def _data(plan: Plan) -> list[Data]:
    """Calibration data and one other set, to detect ranges that fit the calibration data only."""
    recipe = plan.recipe
    named = [("calibration", recipe.calibration)]
    named.append(("validation", recipe.validation) if recipe.validation else ("train", recipe.train))
    data = [Data(name, Feed(dataset, plan.preprocessing)) for name, dataset in named if dataset is not None]
    if not data:
        raise UsageError(f"{recipe.file}: no samples to compare layers on", fix="add data.calibration")
    return data


def _notes(recipe: Recipe, data: Sequence[Data]) -> list[str]:
    if len(data) > 1:
        return []
    return [
        "only calibration data is available: whether it represents other data cannot be checked; "
        "add data.validation or data.train"
    ]


def _recalibrate(document: Mapping[str, Any], recipe: Recipe) -> Changes | None:
    """The change that calibrates on training data, or else on validation data."""
    for part in ("train", "validation"):
        entry = document.get("data", {}).get(part)
        if entry is None:
            continue
        use = Use.model_validate(entry)
        options = dict(use.options)
        if "limit" in type(getattr(recipe, part)).model_fields:
            options.setdefault("limit", RECALIBRATION_LIMIT)
        return {"data": {"calibration": {"uses": use.uses, "with": options}}}
    return None


def _possible(target: Target, document: Mapping[str, Any], changes: Changes) -> bool:
    """Whether the changed recipe has a plan: its options are known and its stages available."""
    patch = patch_of(document, target.variant, changes)
    if patch is None:
        return False
    try:
        plan = make_plan(target.load(patch))
    except UsageError:
        return False
    return any(branch.variant == target.variant for branch in plan.branches)


def _measured(
    recipe: Recipe, variant: str, title: str, store: Store, device_folders: Sequence[Path], watch: Watch
) -> Before:
    """Build a variant and measure it on the host, as ``optimize`` does."""
    plan = make_plan(recipe)
    plan.demand_possible()
    builds, measured = build_and_measure(plan, store, device_folders, watch)
    scratch = tempfile.TemporaryDirectory(prefix="edgeopt-")
    with scratch as name, scorer_of(recipe, measured.labels) as scorer:
        assemble.source_result(plan, measured, scorer)
        rows, _ = assemble.results(plan, builds, measured, scorer, Path(name))
    row = next(row for row in rows if row.variant == variant)
    return Before(variant=title, status=row.status, reason=row.reason, measurements=row.measurements)
