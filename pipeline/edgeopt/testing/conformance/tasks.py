"""Contract of tasks and decoders: one decision per sample, which agrees with itself and can be drawn."""

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions, Decoder, Task
from edgeopt.results import Findings, SampleChange
from edgeopt.testing.conformance.options import check_options, demand, instance_of
from edgeopt.testing.workshop import Workshop

COUNT = 12
MAX_CHARACTERS = 20_000
"""Maximum size of a drawing as JSON."""


def check_task(task: Task | type[Task], workshop: Workshop) -> None:
    """Check that a task decides once per sample, in any order of samples, and agrees with itself.

    Raises:
        Nonconformance: the task violates the contract.
    """
    instance = instance_of(task)
    check_options(instance)
    name = type(instance).__name__
    decided = 0
    for outputs in _toys():
        try:
            settled = instance.settled(outputs)
            decisions = settled.decide(outputs)
            reads = settled.reads(outputs.all_names())
        except EdgeoptError:
            continue  # not outputs of this task
        decided += 1
        demand(len(decisions.values) == COUNT, f"{name} does not decide once per sample")
        demand(
            set(reads) <= set(range(len(outputs.arrays))),
            f"{name} reads outputs that are not there: {sorted(reads)} of {len(outputs.arrays)}",
        )
        turned = settled.decide(Outputs([array[::-1] for array in outputs.arrays], outputs.names))
        same = all(
            np.array_equal(np.asarray(one), np.asarray(other))
            for one, other in zip(decisions.values, reversed(list(turned.values)), strict=True)
        )
        demand(same, f"the decisions of {name} depend on the order of the samples")
        agreement = settled.agreement(decisions, decisions)
        if agreement is not None:
            demand(agreement.shape == (COUNT,), f"{name} does not return one agreement per sample")
            demand(bool(np.allclose(agreement, 1)), f"{name} does not agree with itself")
        _check_drawings(settled, decisions, name)
    demand(decided > 0, f"{name} decides on no kind of outputs")


def _check_drawings(task: Task, decisions: Decisions, name: str) -> None:
    """Check that drawings and charts are small, and the same when a report is read again."""
    for sample in range(COUNT):
        drawing = task.draw(decisions, sample)
        if drawing is not None:
            change = SampleChange(sample=sample, artifact=drawing)
            text = change.model_dump_json()
            demand(len(text) <= MAX_CHARACTERS, f"{name} draws a sample with {len(text):,} characters")
            same = SampleChange.model_validate_json(text) == change
            demand(same, f"a drawing of {name} is not valid JSON: are its numbers finite?")
    found = Findings(changed=0, charts=task.charts(decisions, decisions, None))
    same = Findings.model_validate_json(found.model_dump_json()) == found
    demand(same, f"a chart of {name} is not valid JSON: are its numbers finite?")


def check_decoder(decoder: Decoder | type[Decoder], workshop: Workshop) -> None:
    """Check the options of a decoder, and that it refuses outputs of another shape with an error of its own.

    Raises:
        Nonconformance: the decoder violates the contract.
    """
    instance = instance_of(decoder)
    check_options(instance)
    name = type(instance).__name__
    for outputs in _toys():
        try:
            decoded = instance.apply(outputs)
        except EdgeoptError:
            continue
        counts = {len(array) for array in decoded.arrays}
        demand(counts == {COUNT}, f"{name} returns outputs of {sorted(counts)} samples, not {COUNT}")


def _toys() -> list[Outputs]:
    """Outputs of models of different tasks."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 40, (COUNT, 5, 2))
    boxes = np.concatenate([corners, corners + random.uniform(4, 9, (COUNT, 5, 2))], axis=2)
    scores = random.uniform(0.35, 1, (COUNT, 5))
    return [
        Outputs([random.random((COUNT, 7))], ["scores"]),
        Outputs([random.random((COUNT, 1))], ["score"]),
        Outputs([random.normal(0, 2, (COUNT, 8, 8, 3))], ["pixels"]),
        Outputs([random.normal(0, 2, (COUNT, 6, 9))], ["steps"]),
        Outputs([boxes, scores, random.integers(0, 3, (COUNT, 5))], ["boxes", "scores", "classes"]),
    ]
