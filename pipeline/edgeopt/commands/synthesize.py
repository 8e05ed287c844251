"""Calibration data for models without data: samples with the statistics of their batch norms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeopt.commands.start import is_model
from edgeopt.config.files import writing
from edgeopt.errors import CannotRunError, UsageError
from edgeopt.evaluation.samples import random_inputs
from edgeopt.formats.known import format_named
from edgeopt.formats.source import inspect
from edgeopt.formats.synthesis import STEPS, smooth
from edgeopt.model import Array, InputPreprocessing, Model, Preprocessing, TensorSpec, arrange
from edgeopt.plugin.synthesis import Start, Synthesis
from edgeopt.recipe.plan import Plan
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.store import open_store
from edgeopt.run.synthesis import synthesize_apart

SAMPLES = 64
DATA = "x"
"""The array of a model with one input, as the dataset ``npz`` expects it."""

Watch = Callable[[Event], None]


class Source(NamedTuple):
    """A model to make samples for, and how samples become its inputs."""

    model: Model
    preprocessing: InputPreprocessing
    trust: bool = False


class Written(NamedTuple):
    """The file of samples, its arrays by input, and the difference from the statistics, before and after."""

    file: Path
    arrays: Mapping[str, Array]
    before: float
    after: float
    unbounded: bool
    """Whether images are of unknown range."""

    @property
    def setting(self) -> str:
        """What a recipe says to calibrate with the file."""
        names = (
            ""
            if list(self.arrays) == [DATA]
            else f", inputs: {{{', '.join(f'{n}: {n}' for n in self.arrays)}}}"
        )
        return f"calibration: {{uses: npz, with: {{path: {self.file}{names}}}}}"


def synthesize(
    recipe: str | Path,
    out: Path,
    *,
    samples: int = SAMPLES,
    steps: int = STEPS,
    bounds: tuple[float, float] | None = None,
    store: str | Path | None = None,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    watch: Watch = lambda event: None,
) -> Written:
    """Write samples with the statistics that a model's batch norms recorded, to calibrate with.

    Args:
        recipe: a recipe, which says how samples become inputs, or a model, whose inputs are the samples.
        out: the ``.npz`` file.
        samples: how many to make.
        steps: steps of gradient descent.
        bounds: least and largest value of a sample, such as 0 and 255 of images.
        store: folder of cached results, for the module of a factory.
        overrides: settings that replace those of the recipe.
        data_root: folder for relative paths of the recipe.
        watch: called with every progress event.

    Raises:
        UsageError: the recipe or the bounds are invalid, or a model of this format has no batch norms.
        CannotRunError: the model cannot be loaded, or has no batch norm.
    """
    if bounds is not None and bounds[0] >= bounds[1]:
        raise UsageError(
            f"no value is between {bounds[0]:g} and {bounds[1]:g}", fix="give the least one first"
        )
    source = (
        _of_model(Path(recipe))
        if is_model(recipe)
        else _of_recipe(recipe, overrides, data_root, store, watch)
    )
    model = source.model
    kind = format_named(model.format)
    if kind.synthesizes is None:
        raise UsageError(
            f"{model.path} is {kind.title}: its batch norms are folded, or it has no gradients",
            fix="give the Keras or PyTorch model that it was made from, or calibrate with samples",
        )
    specs = model.inputs
    noise = random_inputs(specs, samples)
    starts = tuple(
        Start(smooth(each, spec.layout), *_ends(source.preprocessing.of(index, spec), spec, bounds))
        for index, (each, spec) in enumerate(zip(noise, specs, strict=True))
    )
    found = synthesize_apart(kind.synthesizes, model, Synthesis(starts, steps, source.trust), watch)
    names = [DATA] if len(specs) == 1 else source.preprocessing.names(specs)
    arrays: dict[str, Array] = {}
    for index, (name, spec, values) in enumerate(zip(names, specs, found.arrays, strict=True)):
        raw = source.preprocessing.of(index, spec).undo(values, spec)
        if bounds is not None and starts[index].changes:
            raw.reshape(-1)[[0, -1]] = bounds  # so that calibration sees the whole range
        arrays[name] = raw
    with writing(out, "choose another file with --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, allow_pickle=False, **arrays)
    unbounded = bounds is None and any(spec.layout is not None for spec in specs)
    return Written(out, arrays, found.before, found.after, unbounded)


def _of_model(path: Path) -> Source:
    model = inspect(path, trust=False, code=None).model
    return Source(model, InputPreprocessing(Preprocessing(), model.inputs))


def _of_recipe(
    name: str | Path, overrides: Sequence[str], data_root: Path | None, store: str | Path | None, watch: Watch
) -> Source:
    plan = make_plan(load_recipe(name, overrides=overrides, data_root=data_root))
    model = plan.source
    if format_named(model.format).from_factory:
        model = _loaded(plan, store, watch)
    return Source(model, plan.preprocessing, plan.recipe.model.trust)


def _loaded(plan: Plan, store: str | Path | None, watch: Watch) -> Model:
    """The module that a factory builds, with its weights."""
    if not plan.branches:
        plan.demand_possible()
    first = plan.branches[0]
    only = replace(plan, branches=(first._replace(stages=first.stages[:1]),))
    (built,) = build(only, open_store(store), watch)
    if built.failure:
        raise CannotRunError(built.failure)
    return only.latest(built)


def _ends(
    steps: Preprocessing, spec: TensorSpec, bounds: tuple[float, float] | None
) -> tuple[Array, Array] | tuple[()]:
    """The least and the largest values of an input, each of batch 1."""
    if bounds is None:
        return ()
    shape = tuple(size or 1 for size in spec.shape[1:])
    raw = arrange(np.zeros((1, *shape), np.float32), spec.layout, steps.layout or spec.layout)[0]
    ends = [steps.apply(np.full_like(raw, value), spec).astype(np.float32) for value in bounds]
    return np.minimum(*ends), np.maximum(*ends)
