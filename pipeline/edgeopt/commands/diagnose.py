"""Builds a variant, compares it with its float model layer by layer, and says what to change."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.config.nearest import nearest
from edgeopt.config.yaml_source import read_yaml, set_value
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device
from edgeopt.errors import StageError, UsageError
from edgeopt.evaluation.diagnosis import Before, Changes, Diagnosis, causes, propose
from edgeopt.evaluation.layer_comparison import Data
from edgeopt.formats.known import artifact_formats, format_named
from edgeopt.model import Model
from edgeopt.plugin import Feed, LayerView, Stage
from edgeopt.recipe.document import Recipe, Use
from edgeopt.recipe.patch import patch_of, shown
from edgeopt.recipe.planner import BASELINE, Built, Plan, make_plan
from edgeopt.recipe.resolve import find_recipe, load_recipe
from edgeopt.results import Event, Hop
from edgeopt.run import assemble
from edgeopt.run.bench import HOST, Bench, Evaluation
from edgeopt.run.build import build
from edgeopt.run.layer_worker import compare_apart
from edgeopt.run.preflight import check_data
from edgeopt.run.scoring import Scorer
from edgeopt.run.session import PROBE_SAMPLES, SOURCE_BATCH, StepOutputs, judged_steps, measure
from edgeopt.run.store import Store, store_folder

SAMPLES = 64
HELD_OUT_LIMIT = 512
"""Samples of other data that are enough to calibrate with."""

PRECISIONS = {"float16": "16 bits of float", "int4": "4 bits"}
"""How schemes are called that are not 8 bits wide."""

Watch = Callable[[Event], None]


class Asked(NamedTuple):
    """A recipe, and one variant of it in one format."""

    recipe: str | Path
    variant: str
    format: str
    overrides: tuple[str, ...]
    data_root: Path | None
    device_folders: tuple[Path, ...]

    def load(self, patch: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe for this variant and its baseline alone, on the host."""
        more = [f"{part}={json.dumps(value)}" for part, value in (patch or {}).items()]
        loaded = load_recipe(
            self.recipe,
            overrides=[*self.overrides, *more],
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
        """The recipe as it is written, with what the command line replaces."""
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
    """Say what is wrong with a quantized variant, and what to change in the recipe.

    Layers are compared on calibration data and, where the recipe gives some, on validation or training
    data; the evaluation data serve for nothing but the figures before and after.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        variant: one of its variants that is quantized.
        format: onnx, tflite or executorch.
        samples: how many samples to compare on.
        apply: build and measure the patched variant as well.
        store: folder of finished work; default ``EDGEOPT_STORE`` or ``artifacts/store``.
        overrides: ``key.key=value`` settings that replace what the recipe says.

    Raises:
        UsageError: there is no such variant or format, the variant is not quantized, or cannot be had.
        StageError: it could not be built or compared.
    """
    asked = Asked(recipe, variant, format, tuple(overrides), data_root, tuple(device_folders))
    loaded = asked.load()
    view = _check(loaded, variant, format)
    plan = make_plan(loaded)
    plan.demand_possible()
    finished = Store(store_folder(store))
    check_data(plan)
    builds = {built.branch.variant: built for built in build(plan, finished, watch)}
    built = builds[variant]
    if not built.complete and not any(_quantizes(step.stage) for step in built.steps):
        raise StageError(f"{built.branch.name} could not be built: {built.failure}")
    reference, quantized = _pair(builds, variant, view)
    data = _data(loaded)
    hops = _hops(plan, built, finished, asked.device_folders, watch)
    comparison = compare_apart(view.worker, reference, quantized, data, samples, built.branch.name, watch)
    document = asked.document()
    found = causes(comparison, hops, _recalibrate(document, loaded), _precision(built))
    changes = propose(found, partial(_possible, asked, document))
    patch = patch_of(document, variant, changes) or {}
    applied: tuple[Before, ...] = ()
    notes = list(_notes(loaded, data))
    if apply and patch:
        after = asked.load(patch)
        applied = (
            _measured(loaded, variant, variant, finished, asked.device_folders, watch),
            _measured(after, variant, f"{variant}, patched", finished, asked.device_folders, watch),
        )
    elif apply:
        notes.append("there is nothing to apply: no change of the recipe would repair it")
    return Diagnosis(
        recipe=loaded.name,
        variant=variant,
        format=format,
        data=", ".join(part.name for part in data),
        comparison=comparison,
        steps=hops,
        causes=tuple(found),
        patch=shown(patch, variant),
        notes=tuple(notes),
        applied=applied,
    )


def _precision(built: Built) -> str:
    """What the variant's weights and values are stored in, in words."""
    schemes = [step.stage.options().get("scheme", "") for step in built.steps if _quantizes(step.stage)]
    return next((words for scheme in schemes for words in [PRECISIONS.get(str(scheme))] if words), "8 bits")


def _check(recipe: Recipe, variant: str, format: str) -> LayerView:
    """Where the layers of the variant's artifact can be compared.

    Raises:
        UsageError: they cannot, or there is nothing to compare.
    """
    if format not in artifact_formats():
        raise UsageError(f"no format {format!r}{nearest(format, artifact_formats())}")
    kind = format_named(format)
    if kind.layers is None:
        raise UsageError(f"the layers of {kind.title} cannot be compared", fix=kind.no_layers)
    named = next((v for v in recipe.variants if v.name == variant), None)
    if named is None:
        known = [name for name in _variants(recipe) if name != BASELINE]
        raise UsageError(f"{recipe.file} has no variant {variant!r}{nearest(variant, known)}")
    asks = any(intent.name == "quantize" for intent in named.intents)
    lists = any(_quantizes(stage) for stage in named.stages or ())
    if not asks and not lists:
        raise UsageError(
            f"variant {variant!r} is not quantized: there is nothing to diagnose",
            fix="choose one with quantize, or see where it lost its accuracy in the hops of edgeopt optimize",
        )
    return kind.layers


def _variants(recipe: Recipe) -> list[str]:
    data, _ = read_yaml(recipe.file.read_text("utf-8"), str(recipe.file))
    return [str(name) for name in (data.get("optimize") or {})]


def _quantizes(stage: Stage) -> bool:
    return "quantize" in stage.fulfils


def _pair(builds: Mapping[str, Built], variant: str, view: LayerView) -> tuple[Model, Model]:
    """The float model and what quantizing made of it, before names were removed.

    Where both are steps of the variant, what was pruned or repaired before is in both of them, and only
    quantization is between. A model that was quantized in its framework is held against the baseline.
    """
    steps = builds[variant].steps
    at = max(index for index, step in enumerate(steps) if _quantizes(step.stage))
    made = [step.model for step in steps[at:] if step.model.format in view.quantized]
    before = [step.model for step in steps[:at] if step.model.format == view.reference]
    before = before or [s.model for s in builds[BASELINE].steps if s.model.format == view.reference]
    if not made or not before:
        chain = " → ".join(step.model.format for step in steps)
        raise StageError(
            f"{builds[variant].branch.name} cannot be compared layer by layer: its steps give {chain}",
            fix=f"it takes a float {view.reference} file and one of {', '.join(view.quantized)}",
        )
    return before[-1], made[0]


def _data(recipe: Recipe) -> list[Data]:
    """Calibration data, and what else there is that is not for judging: ranges hold on both, or do not."""
    preprocess = recipe.model.preprocess
    named = [("calibration", recipe.calibration)]
    named.append(("validation", recipe.validation) if recipe.validation else ("train", recipe.train))
    found = [Data(name, Feed(dataset, preprocess)) for name, dataset in named if dataset is not None]
    if not found:
        raise UsageError(
            f"{recipe.file}: there are no samples to compare layers on", fix="add data.calibration"
        )
    return found


def _notes(recipe: Recipe, data: Sequence[Data]) -> list[str]:
    if len(data) > 1:
        return []
    return [
        "only calibration data are there: that they differ from what the model will see cannot be noticed; "
        "add data.validation, or data.train"
    ]


def _hops(
    plan: Plan, built: Built, store: Store, device_folders: Sequence[Path], watch: Watch
) -> tuple[Hop, ...]:
    """Every step that the host can run, held against the one before on calibration data."""
    recipe = plan.recipe
    host = load_device(HOST, device_folders)
    name = built.branch.name
    watch(Event(branch=name, step="compare steps", status="started"))
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        folder = Path(scratch)
        evaluation = Evaluation(recipe.calibration or recipe.train, recipe.model.preprocess, folder)
        bench = Bench(host, build_agent(folder / "agent.pyz"), store).open()
        run = partial(bench.run, evaluation=evaluation, limit=PROBE_SAMPLES)
        source = plan.source if plan.source.format in host.runtimes else built.steps[0].model
        first = run(source, batch=SOURCE_BATCH, options={"trust": recipe.model.trust})
        step_outputs = [StepOutputs("source", source.format, True, first)]
        for step, names, lossless, trained in judged_steps(built.steps, source, host):
            step_outputs.append(StepOutputs(names, step.model.format, lossless, run(step.model), trained))
        hops = assemble.hops_of(step_outputs)
    watch(Event(branch=name, step="compare steps", status="done"))
    return hops


def _recalibrate(document: Mapping[str, Any], recipe: Recipe) -> Changes | None:
    """The change that calibrates on training data, or on validation data where there are none."""
    for part in ("train", "validation"):
        told = document.get("data", {}).get(part)
        if told is None:
            continue
        use = Use.model_validate(told)
        options = dict(use.options)
        if "limit" in type(getattr(recipe, part)).model_fields:
            options.setdefault("limit", HELD_OUT_LIMIT)
        return {"data": {"calibration": {"uses": use.uses, "with": options}}}
    return None


def _possible(asked: Asked, document: Mapping[str, Any], changes: Changes) -> bool:
    """Whether the recipe with these changes can be carried out: every option known, every stage there."""
    patch = patch_of(document, asked.variant, changes)
    if patch is None:
        return False
    try:
        plan = make_plan(asked.load(patch))
    except UsageError:
        return False
    return any(branch.variant == asked.variant for branch in plan.branches)


def _measured(
    recipe: Recipe, variant: str, title: str, store: Store, device_folders: Sequence[Path], watch: Watch
) -> Before:
    """Build a recipe's variant and measure it on the host as ``optimize`` does."""
    plan = make_plan(recipe)
    plan.demand_possible()
    builds = build(plan, store, watch)
    measured = measure(plan, builds, store, device_folders, watch)
    scratch = tempfile.TemporaryDirectory(prefix="edgeopt-")
    with scratch as name, Scorer(recipe.metrics, measured.labels) as scorer:
        assemble.source_result(plan, measured, scorer)
        rows, _ = assemble.results(plan, builds, measured, scorer, Path(name))
    row = next(row for row in rows if row.variant == variant)
    return Before(variant=title, status=row.status, reason=row.reason, measurements=row.measurements)
