"""Metrics, on numbers that can be verified by hand or with scikit-learn."""

import sys

import numpy as np
import pytest

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics.agreement import Agreement
from edgeopt.evaluation.metrics.fidelity_snr_db import FidelitySnrDb
from edgeopt.evaluation.metrics.function import Function
from edgeopt.evaluation.metrics.max_abs_error import MaxAbsError
from edgeopt.evaluation.metrics.mean_squared_error import MeanSquaredError
from edgeopt.evaluation.metrics.roc_auc import RocAuc
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.evaluation.metrics.top5 import Top5
from edgeopt.evaluation.tasks.classification import Classification
from edgeopt.model import Outputs
from edgeopt.plugin import Score

NAN = np.nan
SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4], [0.2, 0.3, 0.5]], np.float32)


def scored(outputs: np.ndarray) -> np.ndarray:
    """The scores that the classification task reads from outputs."""
    return Classification().decide(Outputs([outputs])).scores


def test_top1():
    score = Top1().score(SCORES, np.array([1, 0, 2, 0]))
    assert score.value == 0.75
    assert score.per_sample is not None
    assert score.per_sample.tolist() == [1, 1, 1, 0]
    assert score.per_sample.mean() == score.value


def test_top1_of_one_output_is_a_binary_decision():
    labels = np.array([0, 1, 1, 0])
    assert Top1().score(scored(np.array([[0.2], [0.7], [0.4], [0.1]])), labels).value == 0.75  # probabilities
    assert Top1().score(scored(np.array([-2.0, 0.4, 3.0, 0.1])), labels).value == 0.75  # logits


def test_top1_drops_axes_of_length_one():
    labels = np.array([[1], [0], [2], [2]])
    assert Top1().score(scored(SCORES.reshape(4, 1, 1, 3)), labels).value == 1.0


@pytest.mark.parametrize("metric", [Top1(), Top5()])
def test_outputs_that_are_not_finite_are_wrong(metric):
    outputs = np.eye(6)
    broken = outputs.copy()
    broken[2, 2], broken[4, 4] = np.inf, NAN
    assert metric.score(outputs, np.arange(6)).value == 1.0
    assert metric.score(broken, np.arange(6)).per_sample.tolist() == [1, 1, 0, 1, 0, 1]


def test_top5():
    outputs = np.tile(np.arange(7.0), (3, 1))
    assert Top5().score(outputs, np.array([6, 2, 1])).per_sample.tolist() == [1, 1, 0]
    assert Top5().score(np.zeros((2, 7)), np.array([4, 5])).per_sample.tolist() == [1, 0]  # ties
    with pytest.raises(UsageError, match="at least 5 classes, the model has 3"):
        Top5().score(SCORES, np.zeros(4, int))


@pytest.mark.parametrize("metric", [Top1(), Top5(), RocAuc()])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([1, 0, 9, 12]), "label 9 of sample 2 is out of range: the model has 6 classes"),
        (np.array([1, -1, 0, 0]), "label -1 of sample 1 is out of range"),
        (np.array([1, 0, 0]), "4 outputs but 3 labels"),
        (np.array([1, 0.5, 0, 0]), "labels are float64, not integers: label 1 is 0.5"),
        (np.array([1.0, 0.0, 0.0, 0.0]), "labels are float64, not integers"),
        (np.eye(6)[:4], r"labels of shape \[4, 6\] are not one class index per sample"),
    ],
)
def test_labels_that_do_not_fit(metric, labels, message):
    with pytest.raises(UsageError, match=message) as error:
        metric.score(np.random.default_rng(0).random((4, 6)), labels)
    if labels.ndim == 2:
        assert "argmax" in error.value.fix


def test_outputs_that_are_no_scores():
    with pytest.raises(UsageError, match=r"\[4, 2, 3\] are not one per class"):
        Top1().score(np.zeros((4, 2, 3)), np.zeros(4, int))


def test_roc_auc_by_hand():
    # Of the four pairs of a positive and a negative, three are in order; the tie counts half.
    labels = np.array([0, 0, 1, 1])
    assert RocAuc().score(scored(np.array([0.1, 0.4, 0.35, 0.8])), labels).value == 0.75
    assert RocAuc().score(scored(np.array([0.1, 0.4, 0.4, 0.8])), labels).value == 0.875
    assert RocAuc().score(scored(np.array([0.1, 0.4, NAN, 0.8])), labels).value == 0.5


@pytest.mark.parametrize("classes", [2, 5])
def test_roc_auc_equals_scikit_learn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 300)
    scores = random.random((300, classes)).round(2) + 0.3 * np.eye(classes)[labels]
    scores /= scores.sum(axis=1, keepdims=True)
    wanted = metrics.roc_auc_score(labels, scores[:, 1] if classes == 2 else scores, multi_class="ovr")
    assert abs(RocAuc().score(scores, labels).value - wanted) < 1e-12


def test_roc_auc_of_two_logits_orders_by_their_difference():
    outputs = np.array([[9.0, 8.0], [0.0, 1.0]])
    assert RocAuc().score(outputs, np.array([0, 1])).value == 1.0


def test_roc_auc_needs_two_classes_among_the_labels():
    with pytest.raises(UsageError, match="all labels are 2"):
        RocAuc().score(SCORES, np.array([2, 2, 2, 2]))


def test_mean_squared_error():
    outputs = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    score = MeanSquaredError().score(outputs, np.array([[1.0, 0.0], [3.0, 4.0]]))
    assert score.value == 1.25
    assert score.per_sample.tolist() == [2.0, 0.5]
    assert not MeanSquaredError().higher_is_better
    assert MeanSquaredError().score(np.array([[1.0], [2.0]]), np.array([1, 4])).value == 2.0
    assert MeanSquaredError().score(np.array([[1.0], [NAN]]), np.array([1, 4])).value == np.inf
    with pytest.raises(UsageError, match=r"\[2, 2\] cannot be compared with labels of shape \[2\]"):
        MeanSquaredError().score(outputs, np.array([1, 2]))
    with pytest.raises(UsageError, match="cannot be compared"):
        MeanSquaredError().score(np.zeros((2, 3, 4)), np.zeros((2, 4, 3)))


def test_fidelity_snr_db():
    reference = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    noisy = reference + np.array([[0.3, 0.4], [0.0, 0.0]])
    assert abs(FidelitySnrDb().score(noisy, reference).value - 20.0) < 1e-6
    assert FidelitySnrDb().score(reference, reference).value == 200.0
    assert FidelitySnrDb().score(reference, 0 * reference).value == -200.0
    assert FidelitySnrDb().score(reference * NAN, reference).value == -200.0
    assert FidelitySnrDb().score(noisy, reference).per_sample is None
    with pytest.raises(UsageError, match="source model's of shape"):
        FidelitySnrDb().score(reference[:1], reference)


def test_agreement():
    score = Agreement().score(np.array([1.0, 0.0, 0.5, 1.0]), None)
    assert score.value == 0.625 and score.per_sample.tolist() == [1, 0, 0.5, 1]


CODE = """
import numpy as np

def error(outputs, labels): return float(np.abs(outputs[:, 0] - labels).mean())
def hits(outputs, labels, border=0.5): return (outputs[:, 0] > border) == labels
def wrong(outputs, labels): return outputs
def text(outputs, labels): return "good"
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)

    def make(name: str, **options) -> Function:
        context = {"roots": (tmp_path,)}
        return Function.model_validate({"function": f"own_metrics:{name}", **options}, context=context)

    return make


def test_function(code):
    outputs, labels = np.array([[0.25, 0], [0.75, 0]]), np.array([0, 1])
    metric = code("error", lower_is_better=True, compare_with="source")
    assert metric.score(outputs, labels) == Score(0.25)
    assert (metric.against, metric.higher_is_better) == ("source", False)
    score = code("hits", arguments={"border": 0.8}).score(outputs, labels)
    assert score.value == 0.5
    assert score.per_sample.tolist() == [1, 0]
    assert (code("hits").against, code("hits").higher_is_better) == ("labels", True)
    with pytest.raises(UsageError, match=r"own_metrics:wrong returned ndarray of shape \[2, 2\]") as error:
        code("wrong").score(outputs, labels)
    assert "array of 2 numbers" in error.value.fix
    with pytest.raises(UsageError, match="own_metrics:text returned str"):
        code("text").score(outputs, labels)


def test_max_abs_error_is_the_worst_value_and_stays_finite() -> None:
    reference = np.zeros((3, 4), np.float32)
    outputs = reference.copy()
    outputs[1, 2] = -0.25
    assert MaxAbsError().score(outputs, reference).value == 0.25
    outputs[0, 0] = np.nan
    assert np.isfinite(MaxAbsError().score(outputs, reference).value)
    with pytest.raises(UsageError, match="cannot be compared"):
        MaxAbsError().score(outputs[:, :2], reference)
