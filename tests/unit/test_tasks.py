"""Tasks: decisions and agreement, and how the task of a model is found."""

import numpy as np
import pytest

from edgeopt.errors import UsageError
from edgeopt.evaluation.confidence.verdicts import decide
from edgeopt.evaluation.hops import hop
from edgeopt.evaluation.interpreter import Interpreter, find_task, tasks
from edgeopt.evaluation.metrics.agreement import Agreement
from edgeopt.evaluation.metrics.f1 import F1
from edgeopt.evaluation.metrics.mean_squared_error import MeanSquaredError
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.evaluation.tasks.classification import Classification
from edgeopt.evaluation.tasks.regression import Regression
from edgeopt.evaluation.tasks.tensors import Tensors
from edgeopt.model import Outputs
from edgeopt.plugin import Head, Metric, NamedMetric, Score
from edgeopt.run.scoring import Scorer

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4], [0.2, 0.3, 0.5]], np.float32)
LABELS = np.array([1, 0, 2, 0])


def agreement(task, outputs, source) -> list[float]:
    settled = task.settled(Outputs([source]))
    found = settled.agreement(settled.decide(Outputs([outputs])), settled.decide(Outputs([source])))
    return found.tolist()


def test_the_class_with_the_highest_score() -> None:
    decisions = Classification().decide(Outputs([SCORES]))
    assert decisions.values.tolist() == [1, 0, 2, 2]
    assert decisions.scores.shape == (4, 3)
    changed = SCORES.copy()
    changed[1] = [0.1, 0.8, 0.1]
    changed[3] = [np.nan, 0, 0.5]
    assert agreement(Classification(), changed, SCORES) == [1, 0, 1, 0]


def test_a_single_score_is_read_as_that_of_the_source() -> None:
    assert agreement(Classification(), np.array([[0.4], [0.6]]), np.array([[0.2], [0.4]])) == [1, 0]
    assert agreement(Classification(), np.array([[0.4], [-2.0]]), np.array([[0.2], [-1.0]])) == [1, 1]
    # The source returns probabilities: a value just above 1 does not make the others logits.
    assert agreement(Classification(), np.array([[1.01], [0.2]]), np.array([[0.9], [0.1]])) == [1, 1]
    assert Classification(probabilities=False).decide(Outputs([np.array([[0.4]])])).values.tolist() == [1]


def test_of_several_outputs_one_has_to_be_named() -> None:
    outputs = Outputs([SCORES, SCORES[:, :2]], ("kind", "state"))
    with pytest.raises(UsageError, match="reads one output, but the model has 2: 'kind', 'state'") as error:
        Classification().decide(outputs)
    assert error.value.fix == "name it: task: {uses: classification, with: {output: kind}}"
    with pytest.raises(UsageError, match="reads the output 'knd', which the model does not have"):
        Classification(output="knd").decide(outputs)
    assert Classification(output="state").decide(outputs).scores.shape == (4, 2)
    assert Classification(output="state").reads(outputs.all_names()) == (1,)


def test_pictures_are_no_scores_of_one_class() -> None:
    with pytest.raises(
        UsageError, match=r"outputs of shape \[2, 4, 4, 3\] are not one score per class"
    ) as error:
        Classification().decide(Outputs([np.zeros((2, 4, 4, 3))]))
    assert "task: segmentation" in error.value.fix


def found(metrics: list[Metric], outputs, labels) -> str:
    return type(find_task(metrics, Outputs([outputs]), labels)).__name__


def test_the_task_is_found_by_outputs_and_labels() -> None:
    assert [task.order for task in tasks()] == sorted(task.order for task in tasks())
    assert tasks()[-1] is Tensors
    assert found([], SCORES, LABELS) == "Classification"
    assert found([], SCORES, None) == "Classification"
    assert found([], SCORES, SCORES) == "Regression"
    assert found([], SCORES[:, :1], LABELS / 2) == "Regression"
    assert found([], np.zeros((4, 8, 8, 3), np.float32), None) == "Tensors"
    assert found([], np.zeros((4, 3), np.int64), None) == "Tensors"


def test_the_metric_decides_the_task() -> None:
    assert found([MeanSquaredError()], SCORES, LABELS) == "Regression"
    assert found([Top1()], np.zeros((4, 8, 8, 3), np.float32), LABELS) == "Classification"
    with pytest.raises(UsageError, match="the metrics are of different tasks: classification, regression"):
        find_task([Top1(), MeanSquaredError()], Outputs([SCORES]), LABELS)


def changed(source, after, task=None, names=()):
    interpreters = () if task is None else (Interpreter(task.settled(Outputs(source, names))),)
    return hop(
        "quantize",
        "tflite",
        lossless=False,
        before=Outputs(source, names),
        after=Outputs(after, names),
        interpreters=interpreters,
    )


def test_a_regression_is_not_judged_by_its_largest_value() -> None:
    random = np.random.default_rng(0)
    keypoints = (100 + random.uniform(0, 1, (50, 8))).astype(np.float32)
    after = keypoints + random.uniform(-0.5, 0.5, keypoints.shape).astype(np.float32) * 16
    assert changed([keypoints], [after]).status == "broken"  # as scores: other largest values at 28 dB
    as_numbers = changed([keypoints], [after], Regression())
    assert (as_numbers.status, as_numbers.agreement) == ("ok", None)


def test_outputs_that_the_task_does_not_read_are_judged_by_themselves() -> None:
    random = np.random.default_rng(0)
    features = random.normal(0, 1, (40, 16))
    hopped = changed(
        [SCORES.repeat(10, 0), features],
        [SCORES.repeat(10, 0), features[::-1]],
        Classification(output="scores"),
        names=("scores", "features"),
    )
    assert hopped.status == "broken" and "of output 'features'" in hopped.reason
    assert [change.status for change in hopped.outputs] == ["ok", "broken"]


class Share(Metric):
    """A metric of the whole set."""

    kind = "fraction"

    def score(self, outputs, target) -> Score:
        evidence = np.stack([outputs[:, 0] * 0 + target, np.ones(len(target))], axis=1)
        return Score(self.weighted(evidence, np.ones(len(target))), evidence=evidence)

    def weighted(self, evidence, weights) -> float:
        counted = weights @ evidence
        return float(counted[0] / counted[1])


def test_a_metric_of_the_whole_set_has_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.run.scoring.is_shipped", lambda metric: True)
    labels = (np.arange(400) % 4 == 0).astype(np.int64)
    source = Outputs([np.zeros((400, 2))])
    with Scorer([NamedMetric("share", Share())], labels) as scorer:
        value = scorer.source(source)["share"]
        scores = scorer.artifact(source, source).values
    low, high = value.ci95
    # Exact binomial: 0.25 +- 1.96 sqrt(0.25 * 0.75 / 400) = 0.25 +- 0.042.
    assert (
        value.value == 0.25
        and low == pytest.approx(0.208, abs=0.012)
        and high == pytest.approx(0.292, abs=0.012)
    )
    assert scores["share_drop"].value == 0 and scores["share_drop"].ci95 == (0, 0)


def test_metrics_of_the_whole_set_are_compared_by_the_contributions_of_the_samples() -> None:
    labels = (np.arange(400) % 4).astype(np.int64)
    before, after = np.eye(4)[labels], np.eye(4)[labels]
    after[:40] = np.roll(after[:40], 1, axis=1)
    with Scorer([NamedMetric.of(F1())], labels) as scorer:
        scorer.source(Outputs([before]))
        scores = scorer.artifact(Outputs([after]), Outputs([before]))
    pair, drop = scores.pairs["f1"], scores.values["f1_drop"]
    assert pair.before.tolist() == [1.0] * 400
    assert pair.drops.mean() == pytest.approx(drop.value)
    assert drop.value == pytest.approx(0.1, abs=0.001)
    # The most by which a sample changes F1: a miss of one class, and a false positive of another.
    assert pair.reach == pytest.approx(1.0, rel=0.02)
    assert decide(pair, 0.05).verdict == "fail"
    assert decide(pair, 0.15).verdict == "pass"
    low, high = decide(pair, 0.05).bounds
    assert drop.ci95 is not None
    assert 0.05 < low < drop.ci95[0] + 0.02 and drop.ci95[1] - 0.02 < high < 0.15


def test_contributions_of_a_metric_of_the_user_are_computed_in_its_process() -> None:
    labels = (np.arange(400) % 4 == 0).astype(np.int64)
    source = Outputs([np.zeros((400, 2))])
    with Scorer([NamedMetric("share", Share())], labels) as scorer:
        scorer.source(source)
        pair = scorer.artifact(source, source).pairs["share"]
    assert pair.of_set and not pair.is_bounded
    assert np.allclose(pair.before, labels)


def test_a_task_without_agreement_has_none_in_the_report() -> None:
    metrics = [NamedMetric.of(Agreement()), NamedMetric.of(MeanSquaredError())]
    source = Outputs([SCORES])
    with Scorer(metrics, SCORES) as scorer:
        scorer.source(source)
        found = scorer.artifact(source, source)
    assert set(found.values) == {"mean_squared_error", "mean_squared_error_drop"}


def test_outputs_that_do_not_fit_the_task_are_refused_before_artifacts_are_judged() -> None:
    outputs = Outputs([SCORES, SCORES], ("a", "b"))
    with (
        Scorer([NamedMetric.of(Top1())], LABELS) as scorer,
        pytest.raises(UsageError, match="reads one output"),
    ):
        scorer.source(outputs)
    with Scorer([NamedMetric.of(Top1())], LABELS, heads=[Head("", Classification(output="b"))]) as scorer:
        assert scorer.source(outputs)["top1"].value == 0.75
