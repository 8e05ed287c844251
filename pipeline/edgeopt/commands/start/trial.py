"""What a trial run of the source model shows: its outputs, its task, and its preprocessing."""

import math
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.commands.start.given import merged
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import HOST, load_device
from edgeopt.errors import CannotRunError, DeviceError, EdgeoptError, UsageError
from edgeopt.evaluation.samples import collect
from edgeopt.model import InputPreprocessing, Outputs, Preprocessing, TensorSpec
from edgeopt.plugin import Labels
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.starter.data import CALIBRATION_SAMPLES, Found, Parts
from edgeopt.recipe.starter.draft import Draft, flow, guess, recipe_text
from edgeopt.recipe.starter.meaning import UNKNOWN, Meaning, with_labels, without_labels
from edgeopt.recipe.starter.media import is_nchw
from edgeopt.recipe.starter.preprocessing import (
    SAMPLES,
    Tried,
    candidates,
    chance,
    is_raw,
    ranked,
    statistics_of,
)
from edgeopt.results import Event
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.preflight import loaded, runnable
from edgeopt.run.store import Store

PREPROCESS = "--set 'model.preprocess={scale: 1/255}'"


@dataclass(frozen=True)
class Place:
    """Where recipe and results are, and who is told about the progress."""

    recipe: Path
    store: Store
    data_root: Path | None = None
    device_folders: Sequence[Path] = ()
    watch: Callable[[Event], None] = field(default=lambda event: None)


def message(text: str) -> Event:
    """A message about the whole run."""
    return Event(branch="", step="", status="note", message=text)


class _Trial(NamedTuple):
    """The outputs of the source model on a few inputs, and the labels of these."""

    outputs: Outputs
    labels: Labels | None = None


def tried(
    draft: Draft, parts: Parts | None, settings: Mapping[str, Any], place: Place, *, complete: bool
) -> Draft:
    """With what a run of the source model on a few samples shows: outputs, task and preprocessing.

    Raises:
        UsageError: with ``complete``, the preprocessing is unknown.
        CannotRunError: with ``complete``, the network of a checkpoint cannot be built.
    """
    draft = replace(draft, stated=bool(settings.keys() & {"tasks", "metric"}))
    if complete and draft.is_weights:
        _check_loads(draft, settings, place)
    unseen = replace(draft, meaning=without_labels(draft.outputs or ()))
    if draft.random or draft.doubtful or (draft.is_weights and draft.factory is None):
        return draft if draft.random else unseen
    found = parts.judging if parts is not None else None
    given = (settings.get("model") or {}).get("preprocess")
    stated = given is not None
    layout = _data_layout(draft, found)
    steps: list[dict[str, Any]] = [layout]
    raw = False
    if found is not None:
        named = isinstance(given, Mapping) and any(isinstance(each, Mapping) for each in given.values())
        draft = replace(draft, preprocess={draft.specs[0].name: layout} if named and layout else layout)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        try:
            recipe = _provisional(draft, settings, place)
            first = next(iter(recipe.evaluation.samples()), None) if recipe.evaluation is not None else None
            if first is not None and len(draft.specs) == 1 and not stated:
                own = _statistics(recipe, layout.get("layout") or draft.specs[0].layout)
                steps = [each | layout for each in candidates(first.inputs[0], draft.specs[0], own)]
                raw = is_raw(first.inputs[0])
            trial = _run(recipe, steps, Path(name), place)
        except UsageError:
            raise
        except EdgeoptError as error:
            note = f"outputs are unknown: the model does not run here: {error.message.splitlines()[0]}"
            return replace(unseen, preprocess=draft.preprocess, notes=(*draft.notes, note))
    if trial is None:
        return replace(unseen, preprocess=draft.preprocess)
    outputs = tuple(
        TensorSpec(name=name, shape=(None, *array.shape[1:]), dtype=array.dtype.name)
        for name, array in zip(trial.outputs.all_names(), trial.outputs.arrays, strict=True)
    )
    draft = replace(draft, outputs=outputs)
    if parts is None or found is None:
        return replace(draft, meaning=without_labels(outputs))
    return _judged(draft, found, trial, steps, stated=stated, raw=raw, complete=complete)


def _judged(
    draft: Draft,
    found: Found,
    trial: _Trial,
    steps: list[dict[str, Any]],
    *,
    stated: bool,
    raw: bool,
    complete: bool,
) -> Draft:
    """With the task that labels and outputs show, and the preprocessing that answers best."""
    meaning = with_labels(trial.outputs, trial.labels)
    if meaning.classes is not None and len(found.classes) not in (0, meaning.classes):
        meaning = Meaning(
            reason=f"{found.path} has {len(found.classes)} classes, and the model {meaning.classes} outputs"
        )
    unused = meaning.reason and not draft.stated
    notes = [*draft.notes, *([f"labels are not used: {meaning.reason}"] if unused else [])]
    named = found.classes if meaning.classes is not None else ()
    draft = replace(draft, meaning=meaning, labels=named, notes=tuple(notes))
    if stated or len(steps) == 1:  # the setting is merged with the layout
        return draft
    return _preprocessed(draft, found, trial, steps, raw=raw, complete=complete)


def _preprocessed(
    draft: Draft, found: Found, trial: _Trial, steps: list[dict[str, Any]], *, raw: bool, complete: bool
) -> Draft:
    """With the preprocessing that answers best.

    Raises:
        UsageError: with ``complete``, none does, or answers cannot be judged.
    """
    labels, task = trial.labels, draft.meaning.task
    choices = []
    if task is not None and labels is not None and not isinstance(labels, Mapping):
        choices = ranked(steps, task, trial.outputs, labels)
    if not choices:
        if not raw:
            note = f"{found.path} is taken as input of the model as it is: no preprocessing"
            return replace(draft, preprocess=steps[0], notes=(*draft.notes, note))
        if not complete:
            note = "model.preprocess cannot be found out: CHANGE it to that of training"
            return replace(draft, preprocess=steps[1], assumed=True, notes=(*draft.notes, note))
        raise UsageError(
            f"the preprocessing of {draft.source} is unknown: the values of {found.path} are not scaled, and "
            f"the usual ones cannot be tried: {draft.meaning.reason or 'no answer is simply right'}",
            fix=f"state it, as in training: {PREPROCESS}, or 'model.preprocess={{}}' for none",
        )
    assert task is not None and labels is not None and not isinstance(labels, Mapping)
    first, second, *others = choices
    count = len(labels) // len(steps)
    shown = "; ".join(
        f"{_steps_text(each.steps)} {each.accuracy:.0%}" for each in (first, second, *others[:1])
    )
    no_better = first.accuracy <= chance(task, labels[:count])
    if complete and no_better:
        raise UsageError(
            f"the preprocessing of {draft.source} cannot be found out: with each of the usual ones it is "
            f"hardly better than chance on {count} samples of {found.path} ({shown})",
            fix=f"state it, as in training: {PREPROCESS}; or check the order of the labels",
        )
    chosen = shlex.quote(f"model.preprocess={flow(dict(first.steps))}")
    how = (
        f"by trying the usual ones on {count} samples (right answers: {shown}). To confirm it, or with what "
        f"training used: --set {chosen}"
    )
    if first.accuracy - second.accuracy < 2 * math.sqrt(first.accuracy * (1 - first.accuracy) / count) + 1e-9:
        how += "; several fit: better state it"
    draft = replace(draft, preprocess=dict(first.steps), assumed=no_better)
    return guess(draft, "model.preprocess", how)


def _statistics(recipe: Recipe, layout: str | None) -> dict[str, NDArray[np.float64]]:
    """Those of the calibration images: many networks are trained with those of their own data."""
    if recipe.calibration is None:
        return {}
    few = islice(recipe.calibration.samples(), CALIBRATION_SAMPLES)
    return statistics_of((each.inputs[0] for each in few), layout)


def _steps_text(steps: Mapping[str, Any]) -> str:
    parts = [f"{name} {value}" for name, value in steps.items() if name != "layout"]
    return ", ".join(parts) or "none"


def _data_layout(draft: Draft, found: Found | None) -> dict[str, Any]:
    """The layout of the data, where it is not that of the model."""
    if found is None or len(draft.specs) != 1 or len(draft.specs[0].shape) != 4:
        return {}
    (spec,) = draft.specs
    if found.layout is not None:
        return {"layout": found.layout} if is_nchw(spec) == (found.layout == "NHWC") else {}
    row = next(iter(found.shapes), ())
    if len(row) != 3 or tuple(row) == tuple(spec.shape[1:]) or spec.layout is None:
        return {}
    other = (row[2], *row[:2]) if spec.layout == "NCHW" else (*row[1:], row[0])
    swapped = "NHWC" if spec.layout == "NCHW" else "NCHW"
    return {"layout": swapped} if tuple(other) == tuple(spec.shape[1:]) else {}


def _provisional(draft: Draft, settings: Mapping[str, Any], place: Place) -> Recipe:
    """The recipe as far as it is known: enough to run the source model."""
    known = replace(draft, meaning=UNKNOWN, variants={}, random=draft.evaluation is None)
    known = replace(known, preprocess=draft.preprocess or {})
    text = recipe_text(known, place.recipe.parent)
    return load_recipe(
        place.recipe,
        text=merged(text, settings) if settings else text,
        data_root=place.data_root,
        device_folders=place.device_folders,
    )


def _check_loads(draft: Draft, settings: Mapping[str, Any], place: Place) -> None:
    """Build the network of a checkpoint, which every artifact begins with.

    Raises:
        CannotRunError: it cannot be built, as every other model that does not load.
    """
    plan = make_plan(_provisional(draft, settings, place))
    built = loaded(plan, place.store, load_device(HOST, place.device_folders).runtimes, place.watch)
    if built is not None and built.failure:
        reason, _, fix = built.failure.partition("\n")
        guessed = draft.guessed.get("model.inputs")
        doubt = f"; the shape of its input was guessed {guessed}" if guessed else ""
        raise CannotRunError(f"{draft.source}: {reason}{doubt}", fix=fix.strip())


def _run(recipe: Recipe, steps: Sequence[Mapping[str, Any]], folder: Path, place: Place) -> _Trial | None:
    """Run the source model on the first samples with each preprocessing; None if it does not run."""
    plan = make_plan(recipe)
    host = load_device(HOST, place.device_folders)
    source = runnable(plan, place.store, host.runtimes, place.watch)
    if source is None:
        return None
    dataset, preprocessing = recipe.evaluation, plan.preprocessing
    if dataset is not None and len(steps) > 1:
        each = tuple(Preprocessing.model_validate(given) for given in steps)
        dataset = Tried(of=dataset, steps=each, spec=plan.source.inputs[0])
        preprocessing = InputPreprocessing(Preprocessing(), plan.source.inputs)
    place.watch(message(f"running {plan.source.path.name} on {SAMPLES} samples, to see what it computes"))
    agent, trust = build_agent(folder / "agent.pyz"), recipe.model.trust
    bench = Bench(host, agent, place.store, trust, shared=True).open()  # nothing is timed
    count = SAMPLES * len(steps)
    outcome = bench.run(source, Evaluation(dataset, preprocessing, folder), limit=count)
    if outcome.error:
        raise DeviceError(outcome.error)
    labels = None
    if dataset is not None:
        _, labels = collect(dataset, preprocessing, plan.source.inputs, count)
    return _Trial(Outputs(outcome.outputs, outcome.output_names), labels)
