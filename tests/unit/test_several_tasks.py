"""Models with several tasks: each reads its own outputs, has its own labels and its own metrics."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import RecipeError, UsageError
from edgeopt.evaluation.hops import hop
from edgeopt.evaluation.interpreter import interpreters
from edgeopt.evaluation.judge import Evidence, judge
from edgeopt.evaluation.metrics.agreement import Agreement
from edgeopt.evaluation.metrics.fidelity_snr_db import FidelitySnrDb
from edgeopt.evaluation.metrics.map50 import Map50
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.evaluation.tasks.classification import Classification
from edgeopt.evaluation.tasks.detection import Detection
from edgeopt.model import Outputs
from edgeopt.plugin import Head, NamedMetric
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Gate, Measurement, Result
from edgeopt.run.preflight import check_labels
from edgeopt.run.scoring import Scorer

COUNT = 40
random = np.random.default_rng(0)
LOGITS = random.normal(0, 1, (COUNT, 4)).astype(np.float32)
BOXES = np.concatenate([random.uniform(0, 20, (COUNT, 3, 2)), random.uniform(30, 60, (COUNT, 3, 2))], 2)
SCORES = random.uniform(0.6, 0.9, (COUNT, 3, 1)).astype(np.float32)
SOURCE = Outputs([LOGITS, BOXES.astype(np.float32), SCORES], ("logits", "boxes", "scores"))
HEADS = (Head("logits", Classification()), Head("boxes+scores", Detection()))
TRUE_BOXES = [np.concatenate([boxes, np.zeros((3, 2))], axis=1) for boxes in BOXES]
LABELS = {"logits": LOGITS.argmax(1), "boxes+scores": TRUE_BOXES}
METRICS = [
    NamedMetric("top1", Top1(), "logits"),
    NamedMetric("map50", Map50(), "boxes+scores"),
    NamedMetric("agreement", Agreement()),
    NamedMetric("fidelity_snr_db", FidelitySnrDb()),
]


def changed(**arrays: np.ndarray) -> Outputs:
    return Outputs(
        [arrays.get(name, value) for name, value in zip(SOURCE.names, SOURCE.arrays, strict=True)],
        SOURCE.names,
    )


def test_every_metric_reads_its_own_outputs_and_labels() -> None:
    wrong = np.roll(LOGITS, 1, axis=1)
    with Scorer(METRICS, LABELS, heads=HEADS) as scorer:
        source = scorer.source(SOURCE)
        other_class = scorer.artifact(changed(logits=wrong), SOURCE)
        no_boxes = scorer.artifact(changed(scores=SCORES * 0), SOURCE)
    assert (source["top1"].value, source["map50"].value) == (1, 1)
    assert (other_class.values["top1"].value, other_class.values["map50"].value) == (0, 1)
    assert (no_boxes.values["top1"].value, no_boxes.values["map50"].value) == (1, 0)
    assert other_class.values["agreement"].value == no_boxes.values["agreement"].value == 0
    assert {
        name: values["agreement"].value for name, values in no_boxes.outputs.items() if "agreement" in values
    } == {
        "logits": 1,
        "boxes+scores": 0,
    }
    assert scorer.source_decisions.keys() == {"logits", "boxes+scores"}


def test_a_hop_is_broken_by_any_of_the_tasks() -> None:
    known = interpreters(SOURCE, LABELS, METRICS, HEADS)

    def status(after: Outputs) -> tuple[str, str]:
        found = hop("quantize", "tflite", lossless=False, before=SOURCE, after=after, interpreters=known)
        return found.status, found.reason

    assert status(SOURCE)[0] == "ok"
    assert status(changed(logits=np.roll(LOGITS, 1, axis=1)))[0] == "broken"
    moved = changed(boxes=SOURCE.arrays[1] + np.float32(14))  # 12 dB, and no box overlaps half of its own
    assert status(moved) == ("broken", pytest.approx(status(moved)[1]))
    assert "boxes+scores" in status(moved)[1]


def test_outputs_of_a_task_are_found_by_name() -> None:
    with pytest.raises(
        UsageError, match="tasks: the model has no output 'mask'; it has 'logits', 'boxes', 'scores'"
    ):
        interpreters(SOURCE, LABELS, METRICS, [Head("mask", Classification())])


def test_classes_of_a_gate_are_those_of_the_metrics_task() -> None:
    with Scorer(METRICS, LABELS, heads=HEADS) as scorer:
        scorer.source(SOURCE)
        pairs = scorer.artifact(SOURCE, SOURCE).pairs
    row = Result(
        variant="int8",
        format="tflite",
        device="host",
        status="ok",
        measurements={"top1": Measurement(value=1.0)},
    )
    evidence = {(row.variant, row.format, row.device): Evidence(pairs, {"top1": LABELS["logits"]})}
    (verdict,) = judge([Gate(metric="top1", min=0.9, classes=("1",))], [row], evidence)
    assert (verdict.status, verdict.measured) == ("pass", 1.0)


RECIPE = """
version: 1
name: two
model: {{factory: "json:loads", inputs: [{{name: x, shape: [1, 4]}}], weights: w.pt}}
data: {{evaluation: {{uses: digits, with: {{part: evaluation}}}}}}
{tasks}
metric: {metric}
formats: [tflite]
"""


def problems(folder: Path, tasks: str, metric: str) -> Sequence[str]:
    (folder / "w.pt").touch()
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(tasks=tasks, metric=metric))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return [problem.message for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("tasks", "metric", "expected"),
    [
        ("task: detection\ntasks: {a: classification}", "top1", "give task for a model with one, or tasks"),
        ("tasks: {a+a: detection}", "map50", "give each name of an output once"),
        ("tasks: {a: classification, a+b: detection}", "[top1, map50]", "output 'a' belongs to the task 'a'"),
        ("tasks: {a: classification, b: classification}", "top1", "'top1' fits the tasks a and b: say which"),
        ("tasks: {a: classification, b: detection}", "{uses: top1, of: c}", "no task 'c'; known: a, b"),
        ("tasks: {a: classification, b: detection}", "{uses: top1, of: b}", "'top1' is a metric of"),
        ("tasks: {a: nosuch}", "top1", "no task 'nosuch'; known:"),
        ("", "[top1, map50]", "the metrics are of different tasks: top1 of"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, tasks: str, metric: str, expected: str) -> None:
    assert any(expected in message for message in problems(tmp_path, tasks, metric)), problems(
        tmp_path, tasks, metric
    )


def test_metrics_go_to_the_task_that_they_fit(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.format(
            tasks="tasks: {kind: classification, box+score: detection, side: classification}",
            metric="[map50, {uses: top1, of: kind}, {uses: top1, of: side, name: side}]",
        )
    )
    recipe = load_recipe(path)
    assert [(head.name, head.outputs) for head in recipe.heads] == [
        ("kind", ("kind",)),
        ("box+score", ("box", "score")),
        ("side", ("side",)),
    ]
    assert {named.name: named.head for named in recipe.metrics if named.metric.against == "labels"} == {
        "map50": "box+score",
        "top1": "kind",
        "side": "side",
    }


def test_class_names_belong_to_any_of_the_outputs(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.format(tasks="", metric="top1").replace("weights: w.pt", "weights: w.pt, labels: [a, b, c]")
    )
    recipe = load_recipe(path)
    check_labels(recipe, [(1, 128), (1, 3)])
    check_labels(recipe, [(1, 4), (1, 8, 8, 3)])
    with pytest.raises(UsageError, match=r"model\.labels has 3 names, but the model has 128 and 4 outputs"):
        check_labels(recipe, [(1, 128), (1, 4)])
