"""Losses per class, and confusions between classes."""

import numpy as np
import pytest

from edgeopt.evaluation.measurements import CLASSES, by_class
from edgeopt.evaluation.tasks.classification import Classification
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.readings import latency


def logits(answers: list[int], classes: int = 4) -> Decisions:
    return Classification().decide(Outputs([np.eye(classes, dtype=np.float32)[answers]]))


def test_classes_that_lost_most_come_first() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    source = logits([0, 0, 0, 1, 2, 2, 2, 0])
    after = logits([0, 1, 1, 1, 1, 2, 2, 0])
    classes, confusions = by_class(after, labels, source)
    assert [(one.label, one.n, one.before, one.after) for one in classes] == [
        (0, 3, 3, 1),
        (2, 3, 2, 2),
        (1, 2, 1, 2),
    ]
    assert [(one.label, one.answer, one.before, one.after) for one in confusions] == [
        (0, 1, 0, 2),
        (1, 2, 1, 0),
        (2, 0, 1, 1),
    ]
    # Every wrong answer is counted once.
    assert sum(one.after for one in confusions) == 3
    assert sum(one.n - one.after for one in classes) == 3


def test_what_is_no_classification_has_no_classes() -> None:
    source = logits([0, 1])
    assert by_class(source, None, source) == ((), ())
    assert by_class(source, np.array([0.5, 1.0]), source) == ((), ())
    assert by_class(source, np.array([0, 9]), source) == ((), ())
    assert by_class(source, np.array([[0], [1]]), source) == ((), ())


def test_of_many_classes_those_that_changed_are_kept() -> None:
    labels = np.arange(1000)
    answers = [(label + 1) % 1000 if label >= 990 else label for label in range(1000)]
    classes, confusions = by_class(logits(answers, 1000), labels, logits(list(labels), 1000))
    assert len(classes) == CLASSES
    assert [one.label for one in classes[:10]] == list(range(990, 1000))
    assert [(one.label, one.answer) for one in confusions[:2]] == [(990, 991), (991, 992)]


def test_latency_has_two_ends() -> None:
    found = latency(Outcome("null", times={"latency": np.array([2e-3, 1e-3, 9e-3])}))
    assert found["latency_min_ms"].value == pytest.approx(1.0)
    assert found["latency_max_ms"].value == pytest.approx(9.0)
    assert (found["latency_max_ms"].unit, found["latency_max_ms"].n) == ("ms", 3)
