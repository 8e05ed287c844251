"""What is checked before anything slow starts: data against model, samples, leaks, the user's own metrics."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device
from edgeopt.errors import UsageError
from edgeopt.evaluation.samples import checked, collect, fingerprint
from edgeopt.model import Model
from edgeopt.plugin import Dataset, digest_of
from edgeopt.recipe.document import Recipe
from edgeopt.recipe.planner import Branch, Plan
from edgeopt.results import Event
from edgeopt.run.bench import HOST, Bench, Evaluation
from edgeopt.run.build import build
from edgeopt.run.scoring import Scorer, is_shipped
from edgeopt.run.store import Store

LEAK = 0.01
"""Share of the evaluation data: real data holds a few samples twice; all silence is alike."""
TRIAL_SAMPLES = 2

Watch = Callable[[Event], None]


class Findings(NamedTuple):
    """What a run goes on in spite of."""

    notes: tuple[str, ...] = ()
    failed_metrics: Mapping[str, str] = {}
    """Metrics that failed on two samples, and why."""


def preflight(plan: Plan, store: Store, device_folders: Sequence[Path], watch: Watch) -> Findings:
    """Check what can be checked at once.

    Raises:
        UsageError: data do not fit the model, a sample is unusable, or judging would be on known samples.
    """
    check_data(plan)
    notes = find_leaks(plan.recipe, check_samples(plan.recipe, store))
    return Findings(tuple(notes), try_metrics(plan, store, device_folders, watch))


def check_data(plan: Plan) -> None:
    """Compare the first sample of every dataset with what the model takes.

    Raises:
        UsageError: naming the dataset and both shapes.
    """
    recipe = plan.recipe
    for dataset in datasets_of(recipe).values():
        _, labels = collect(dataset, recipe.model.preprocess, plan.source.inputs, 1)
        needy = [name for name, metric in recipe.metrics if metric.against == "labels"]
        if dataset is recipe.evaluation and labels is None and needy:
            raise UsageError(
                f"{recipe.file}: the evaluation data has no labels, but {needy[0]} needs them",
                fix="name the labels in data.evaluation, or remove metric: agreement needs none",
            )


def check_samples(recipe: Recipe, store: Store) -> dict[str, NDArray[np.uint64]]:
    """Look at every sample once; the store remembers what was found sound.

    Returns, per use of data, one hash of the inputs of each sample.

    Raises:
        UsageError: naming the first sample that is not finite or of another shape, or an empty dataset.
    """
    hashes: dict[str, NDArray[np.uint64]] = {}
    for part, dataset in datasets_of(recipe).items():
        key = digest_of(["hashes of samples", dataset.digest()])
        entry = store.get(key)
        if entry is None:
            found = np.fromiter((fingerprint(sample) for sample in checked(dataset)), np.uint64)
            with store.scratch() as folder:
                np.save(folder / "hashes.npy", found, allow_pickle=False)
                entry = store.put(key, folder, {"samples": len(found)})
        hashes[part] = np.load(entry.folder / "hashes.npy", allow_pickle=False)
    return hashes


def find_leaks(recipe: Recipe, hashes: Mapping[str, NDArray[np.uint64]]) -> list[str]:
    """What is to be said of samples that judge and were also learned from.

    Raises:
        UsageError: too much of the evaluation data is among them, and the recipe does not allow it.
    """
    notes: list[str] = []
    judging = hashes.get("evaluation")
    for part in ("calibration", "train", "validation") if judging is not None else ():
        if part not in hashes or judging is None:
            continue
        known = np.isin(judging, hashes[part])
        count, share = int(known.sum()), float(known.mean())
        found = f"{count} of the {len(judging)} evaluation samples are in data.{part} as well"
        if share > LEAK and not recipe.allow_leak:
            raise UsageError(
                f"{recipe.file}: {found}: the accuracy would be better than it is elsewhere",
                fix="give other samples, or allow it with data: {allow_leak: true}, which the report tells",
            )
        if count:
            notes.append(f"{found}: the accuracy is better than it is elsewhere" if share > LEAK else found)
    return notes


def try_metrics(plan: Plan, store: Store, device_folders: Sequence[Path], watch: Watch) -> dict[str, str]:
    """Metrics of the user's own that fail on two samples of the source model, and why.

    Shipped metrics need no trial. A source model that cannot be run says so later, in its own row.
    """
    recipe = plan.recipe
    own = [named for named in recipe.metrics if not is_shipped(named.metric)]
    if not own or recipe.evaluation is None:
        return {}
    host = load_device(HOST, device_folders)
    source = _runnable(plan, store, host.runtimes, watch)
    if source is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        folder = Path(scratch)
        evaluation = Evaluation(recipe.evaluation, recipe.model.preprocess, folder)
        bench = Bench(host, build_agent(folder / "agent.pyz"), store).open()
        outcome = bench.run(source, evaluation, limit=TRIAL_SAMPLES, options={"trust": recipe.model.trust})
        _, labels = collect(recipe.evaluation, recipe.model.preprocess, source.inputs, TRIAL_SAMPLES)
    if not outcome.outputs:
        return {}
    outputs = outcome.outputs[0]
    with Scorer(own, labels) as scorer:
        scorer.source(outputs)
        scorer.artifact(outputs, outputs)
        return scorer.failures


def _runnable(plan: Plan, store: Store, runtimes: Mapping[str, str], watch: Watch) -> Model | None:
    """The source model in a form that the host runs: as given, or as the first stage loads it."""
    if plan.source.format in runtimes:
        return plan.source
    first = next((branch.stages[0] for branch in plan.branches if branch.stages), None)
    if first is None or first.fulfils or first.produces not in runtimes:
        return None
    # What this builds is found in the store when the branches are built.
    loading = dataclasses.replace(plan, branches=(Branch("source", first.produces, (first,), ()),))
    (built,) = build(loading, store, watch)
    return built.steps[0].model if built.steps else None


def datasets_of(recipe: Recipe) -> dict[str, Dataset]:
    """The datasets that a recipe names, by their use."""
    named = {
        "calibration": recipe.calibration,
        "evaluation": recipe.evaluation,
        "train": recipe.train,
        "validation": recipe.validation,
    }
    return {part: dataset for part, dataset in named.items() if dataset is not None}
