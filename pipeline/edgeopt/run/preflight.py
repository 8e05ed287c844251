"""Checks before anything slow starts: data against model, samples, data leaks, user-defined metrics."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import HOST, load_device
from edgeopt.errors import DataError, UsageError
from edgeopt.evaluation.interpreter import interpreters, labels_of
from edgeopt.evaluation.samples import checked, collect, fingerprint
from edgeopt.model import Model, Outputs
from edgeopt.plugin import Dataset, digest_of
from edgeopt.recipe.plan import Branch, Built, Plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.scoring import Scorer, is_shipped
from edgeopt.run.store import Store

MAX_LEAK = 0.01
"""Tolerated fraction of leaked evaluation samples: real data contains a few duplicates, such as silence."""
TRIAL_SAMPLES = 2
USUAL = "classification"
"""The task whose outputs need no trial: almost every output fits it."""
LABELLED_SAMPLES = 256
"""Samples whose classes a plan compares with ``model.labels``; a run compares all of them."""

Watch = Callable[[Event], None]


class Findings(NamedTuple):
    """Problems that do not stop a run."""

    notes: tuple[str, ...] = ()
    failed_metrics: Mapping[str, str] = {}
    """Metrics that failed on the trial samples, with the reason."""


def preflight(plan: Plan, store: Store, device_folders: Sequence[Path], watch: Watch) -> Findings:
    """Run all checks.

    Raises:
        UsageError: the data does not fit the model, a sample is unusable, or evaluation data has leaked.
    """
    check_data(plan)
    names = [spec.name for spec in plan.source.inputs]
    notes = find_leaks(plan.recipe, check_samples(plan.recipe, store, names))
    return Findings(tuple(notes), try_metrics(plan, store, device_folders, watch))


def check_data(plan: Plan) -> None:
    """Check that the first sample of every dataset fits the model's inputs, and the labels its outputs.

    Raises:
        UsageError: it does not (names the dataset and both shapes), or labels are missing.
        MissingPackageError: a metric or the data needs a package that is not installed.
    """
    recipe = plan.recipe
    for _, metric, _ in recipe.metrics:
        metric.require()
    check_labels(recipe, [spec.shape for spec in plan.source.outputs])
    if recipe.model.labels and recipe.evaluation is not None:
        first = islice(checked(recipe.evaluation), LABELLED_SAMPLES)
        check_named(recipe, [sample.label for sample in first if isinstance(sample.label, int)])
    for dataset in datasets_of(recipe).values():
        _, labels = collect(dataset, plan.preprocessing, plan.source.inputs, 1)
        label_metrics = [
            name
            for name, metric, head in recipe.metrics
            if metric.against == "labels" and labels_of(labels, head) is None
        ]
        if dataset is recipe.evaluation and isinstance(labels, Mapping) and label_metrics:
            raise UsageError(
                f"{recipe.file}: {label_metrics[0]} requires labels, and the evaluation data has labels for "
                f"{' and '.join(map(repr, labels))}",
                fix="name the labels after the entries of 'tasks'",
            )
        if dataset is recipe.evaluation and label_metrics:
            raise UsageError(
                f"{recipe.file}: the evaluation data has no labels, but {label_metrics[0]} requires them",
                fix="name the labels in data.evaluation (in an .npz file, 'label' is their key), or remove "
                "'metric': agreement requires no labels",
            )


def check_labels(recipe: Recipe, shapes: Sequence[Sequence[int | None]]) -> None:
    """Compare ``model.labels`` with the outputs of the source model, if all are of shape ``[n, classes]``.

    Raises:
        UsageError: none has as many. A single output may be that of a binary classifier.
    """
    names = recipe.model.labels
    if not names or not shapes or any(len(shape) != 2 for shape in shapes):
        return
    counts = [shape[1] for shape in shapes]
    if not any(count in (None, len(names)) or (count, len(names)) == (1, 2) for count in counts):
        listed = " and ".join(map(str, counts))
        raise UsageError(
            f"{recipe.file}: model.labels has {len(names)} names, but the model has {listed} outputs",
            fix="list one name per output, in their order",
        )


def check_named(recipe: Recipe, classes: Sequence[int]) -> None:
    """Check that every class of the evaluation data has a name in ``model.labels``.

    Raises:
        UsageError: a sample is of a class without a name.
    """
    names = recipe.model.labels
    if names and classes and max(classes) >= len(names):
        raise UsageError(
            f"{recipe.file}: model.labels has {len(names)} names, but the evaluation data has a sample of "
            f"class {max(classes)}",
            fix="list one name per output, in their order; classes count from 0",
        )


def check_classes(recipe: Recipe, classes: Sequence[int]) -> None:
    """Check that the classes of the evaluation data have names, and those of the gates samples.

    Raises:
        UsageError: a sample is of a class without a name, or a gate judges a class without samples.
    """
    check_named(recipe, classes)
    names = recipe.model.labels
    for gate in recipe.gates if classes else ():  # without classes, the labels are no class indices
        absent = [
            name
            for name in gate.classes
            if (names.index(name) if name in names else int(name)) not in classes
        ]
        if gate.classes and len(absent) == len(gate.classes):
            raise UsageError(
                f"{recipe.file}: the gate '{gate}' judges class {absent[0]}, of which the evaluation data "
                f"has no sample; it has {len(classes)} classes, {min(classes)} to {max(classes)}",
                fix="correct 'classes', or add samples",
            )


def check_samples(recipe: Recipe, store: Store, names: Sequence[str] = ()) -> dict[str, NDArray[np.uint64]]:
    """Check every sample once; the result is cached in the store.

    Returns the hash of each sample's inputs, by the role of the dataset: arrays of shape ``[n]``. ``names``
    are those of the model's inputs: equal samples have equal hashes, whether they name their inputs or not.

    Raises:
        UsageError: a sample contains NaN or infinity or differs in shape, or a dataset is empty, or the
            classes of the evaluation data do not match the recipe.
    """
    hashes: dict[str, NDArray[np.uint64]] = {}
    for part, dataset in datasets_of(recipe).items():
        several = [names] if len(names) > 1 else []
        key = digest_of(["hashes and classes of samples", dataset.digest(), *several])
        entry = store.get(key)
        if entry is None:
            classes = set[int]()
            fingerprints = np.fromiter(_fingerprints(dataset, classes, names), np.uint64)
            with store.scratch() as folder:
                np.save(folder / "hashes.npy", fingerprints, allow_pickle=False)
                np.save(folder / "classes.npy", np.array(sorted(classes), np.int64), allow_pickle=False)
                entry = store.put(key, folder, {"samples": len(fingerprints)})
        hashes[part] = np.load(entry.folder / "hashes.npy", allow_pickle=False)
        if part == "evaluation":
            check_classes(recipe, np.load(entry.folder / "classes.npy", allow_pickle=False).tolist())
    return hashes


def _fingerprints(dataset: Dataset, classes: set[int], names: Sequence[str]) -> Iterator[int]:
    """The fingerprint of every sample; the class indices among the labels are added to ``classes``."""
    for sample in checked(dataset):
        if isinstance(sample.label, int):
            classes.add(sample.label)
        yield fingerprint(sample.in_order(names) if sample.names else sample.inputs)


def find_leaks(recipe: Recipe, hashes: Mapping[str, NDArray[np.uint64]]) -> list[str]:
    """Find evaluation samples that are also in the calibration, training or validation data.

    Returns notes for the report.

    Raises:
        UsageError: their fraction exceeds ``MAX_LEAK``, and the recipe does not allow it.
    """
    notes: list[str] = []
    evaluation = hashes.get("evaluation")
    for part in ("calibration", "train", "validation") if evaluation is not None else ():
        if part not in hashes or evaluation is None:
            continue
        leaked = np.isin(evaluation, hashes[part])
        count, share = int(leaked.sum()), float(leaked.mean())
        message = f"{count} of the {len(evaluation)} evaluation samples are in data.{part} as well"
        if share > MAX_LEAK and not recipe.allow_leak:
            raise UsageError(
                f"{recipe.file}: {message}: the measured accuracy would be too optimistic",
                fix="use other samples, or set data: {allow_leak: true}, which the report notes",
            )
        if count:
            notes.append(f"{message}: the measured accuracy is optimistic" if share > MAX_LEAK else message)
    return notes


def try_metrics(plan: Plan, store: Store, device_folders: Sequence[Path], watch: Watch) -> dict[str, str]:
    """User-defined metrics that fail on the source model's outputs for two samples, with the reason.

    The tasks and the decoder of the recipe are tried, too; a decoder of the user that fails costs all metrics
    against labels. Shipped metrics are not: two samples may be too few for them. If the source model cannot
    be run, its row in the report has the reason.

    Raises:
        UsageError: the outputs of the source model are not those of the task or of the decoder.
    """
    recipe = plan.recipe
    user_defined = [named for named in recipe.metrics if not is_shipped(named.metric)]
    judged = [named for named in recipe.metrics if named.metric.against == "labels" and named.metric.tasks]
    special = recipe.heads or recipe.decoder or any(USUAL not in named.metric.tasks for named in judged)
    if recipe.evaluation is None or not (user_defined or special):
        return {}
    host = load_device(HOST, device_folders)
    source = runnable(plan, store, host.runtimes, watch)
    if source is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        folder = Path(scratch)
        evaluation = Evaluation(recipe.evaluation, plan.preprocessing, folder)
        bench = Bench(host, build_agent(folder / "agent.pyz"), store, recipe.model.trust).open()
        outcome = bench.run(source, evaluation, limit=TRIAL_SAMPLES)
        _, labels = collect(recipe.evaluation, plan.preprocessing, source.inputs, TRIAL_SAMPLES)
    if not outcome.outputs:
        return {}
    outputs = Outputs(outcome.outputs, outcome.output_names)
    if special:
        try:
            for known in interpreters(outputs, labels, judged, recipe.heads, recipe.decoder):
                known.decide(outputs)
        except DataError as error:  # code of the user costs what depends on it, not the run
            return {name: str(error) for name, metric, _ in recipe.metrics if metric.against == "labels"}
    with Scorer(user_defined, labels, heads=recipe.heads, decoder=recipe.decoder) as scorer:
        scorer.source(outputs)
        scorer.artifact(outputs, outputs)
        return scorer.failures


def runnable(plan: Plan, store: Store, runtimes: Mapping[str, str], watch: Watch) -> Model | None:
    """The source model in a format that the host runs: the original, or the output of the first stage."""
    if plan.source.format in runtimes:
        return plan.source
    built = loaded(plan, store, runtimes, watch)
    return built.steps[0].model if built is not None and built.steps else None


def loaded(plan: Plan, store: Store, runtimes: Mapping[str, str], watch: Watch) -> Built | None:
    """The first stage of a source model that the host does not run; None if it does not run the result.

    It is not wasted: the step is cached in the store, and reused when the branches are built.
    """
    first = next((branch.stages[0] for branch in plan.branches if branch.stages), None)
    if first is None or first.fulfils or first.produces not in runtimes:
        return None
    loading = dataclasses.replace(plan, branches=(Branch("source", first.produces, (first,), ()),))
    (built,) = build(loading, store, watch)
    return built


def datasets_of(recipe: Recipe) -> dict[str, Dataset]:
    """The datasets of a recipe by role."""
    datasets = {
        "calibration": recipe.calibration,
        "evaluation": recipe.evaluation,
        "train": recipe.train,
        "validation": recipe.validation,
    }
    return {part: dataset for part, dataset in datasets.items() if dataset is not None}
