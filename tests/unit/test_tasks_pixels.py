"""Segmentation, multi-label classification and embeddings: decisions, agreement, and when they fit."""

import numpy as np
import pytest

from edgeopt.errors import UsageError
from edgeopt.evaluation.tasks.embedding import Embedding
from edgeopt.evaluation.tasks.multilabel import Multilabel
from edgeopt.evaluation.tasks.segmentation import Segmentation
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions

NAN = np.nan
RANDOM = np.random.default_rng(0)


def outputs(array) -> Outputs:
    return Outputs([np.asarray(array)], ["out"])


# --- segmentation


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2, 6, 6, 3), 3),
        ((2, 3, 6, 6), 1),
        ((2, 4, 6, 3), 3),
        ((2, 3, 4, 6), 1),
        ((2, 6, 6, 21), 3),  # more classes than rows: the equal axes are those of the image
        ((2, 21, 6, 6), 1),
        ((2, 4, 6, 4), 3),
    ],
)
def test_segmentation_finds_the_classes(shape, axis):
    scores = RANDOM.normal(size=shape).astype(np.float32)
    values, by_class = Segmentation().decide(outputs(scores))
    assert np.array_equal(values, scores.argmax(axis=axis))
    assert by_class is None  # no metric reads the scores of all pixels
    named, _ = Segmentation(classes_axis=axis).decide(outputs(scores))
    assert np.array_equal(named, values)


def test_segmentation_with_a_named_axis():
    scores = RANDOM.normal(size=(2, 5, 4, 3))
    assert np.array_equal(Segmentation(classes_axis=1).decide(outputs(scores)).values, scores.argmax(axis=1))
    volume = RANDOM.normal(size=(2, 5, 4, 3, 2))
    assert Segmentation(classes_axis=-1).decide(outputs(volume)).values.shape == (2, 5, 4, 3)
    for axis in (0, 4, -4, -5):
        with pytest.raises(UsageError, match=rf"\[2, 5, 4, 3\] have no classes on axis {axis}"):
            Segmentation(classes_axis=axis).decide(outputs(scores))


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 1), (2, 1, 4, 5)])
def test_segmentation_of_one_channel_is_binary(shape):
    values = RANDOM.uniform(size=(2, 4, 5))
    decisions = Segmentation().decide(outputs(values.reshape(shape)))
    assert np.array_equal(decisions.values, values > 0.5)
    logits = RANDOM.normal(size=(2, 4, 5))
    decisions = Segmentation().decide(outputs(logits.reshape(shape)))
    assert np.array_equal(decisions.values, logits > 0)
    # As the source's values show: one value above 1 does not make logits of probabilities.
    settled = Segmentation().settled(outputs(values.reshape(shape)))
    values[0, 0, 0] = 1.001
    assert np.array_equal(settled.decide(outputs(values.reshape(shape))).values, values > 0.5)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_integers_are_the_label_map(dtype):
    labels = RANDOM.integers(0, 9, (2, 4, 5)).astype(dtype)
    for array in (labels, labels[..., None], labels[:, None]):
        values, scores = Segmentation().decide(outputs(array))
        assert values.dtype == np.int64
        assert np.array_equal(values, labels)
        assert scores is None


def test_pixels_that_are_not_finite_agree_with_nothing():
    scores = RANDOM.normal(size=(2, 4, 4, 3))
    broken = scores.copy()
    broken[0, 0, 0, 1], broken[0, 1, 2, 0] = NAN, np.inf
    task = Segmentation()
    good, bad = task.decide(outputs(scores)), task.decide(outputs(broken))
    assert bad.values[0, 0, 0] == bad.values[0, 1, 2] == -1
    assert (bad.values == -1).sum() == 2
    assert task.agreement(good, good).tolist() == [1, 1]
    assert task.agreement(bad, good).tolist() == [14 / 16, 1]
    assert task.agreement(bad, bad).tolist() == [14 / 16, 1]
    single = np.full((1, 2, 2), 0.2)
    single[0, 1, 1] = NAN  # the others are still probabilities
    assert task.decide(outputs(single)).values.tolist() == [[[0, 0], [0, -1]]]


def test_label_maps_of_other_sizes_do_not_agree():
    small, large = Decisions(np.zeros((2, 2, 2), int)), Decisions(np.zeros((2, 4, 4), int))
    assert Segmentation().agreement(small, large).tolist() == [0, 0]


def test_segmentation_fits():
    scores = outputs(np.zeros((2, 4, 5, 3), np.float32))
    masks = np.zeros((2, 4, 5), np.uint8)
    assert Segmentation.fits(scores, masks)
    assert Segmentation.fits(scores, masks[..., None])
    assert Segmentation.fits(scores, masks[:, None])
    assert Segmentation.fits(outputs(np.zeros((2, 3, 4, 5))), masks)
    assert Segmentation.fits(outputs(masks.astype(np.int64)), masks)
    assert not Segmentation.fits(scores, masks.astype(np.float32))
    assert not Segmentation.fits(scores, masks[:, :2])
    assert not Segmentation.fits(scores, [masks[0], masks[1]])
    assert not Segmentation.fits(scores, None)
    assert not Segmentation.fits(outputs(np.zeros((2, 3))), np.zeros(2, int))
    assert not Segmentation.fits(Outputs([scores.arrays[0]] * 2), masks)
    # The same grey images as input and label are those of an autoencoder.
    one = outputs(np.zeros((2, 4, 5, 1)))
    assert Segmentation.fits(one, masks + 255)
    assert not Segmentation.fits(one, masks + 128)


def test_segmentation_needs_pixels():
    with pytest.raises(UsageError, match=r"\[2, 3\] are not scores of pixels") as error:
        Segmentation().decide(outputs(np.zeros((2, 3))))
    assert "classes_axis" in error.value.fix
    assert Segmentation(output="b").reads(["a", "b"]) == (1,)
    with pytest.raises(UsageError, match="does not have"):
        Segmentation(output="c").decide(Outputs([np.zeros((1, 2, 2, 2))] * 2, ["a", "b"]))


# --- multi-label


def test_multilabel_of_probabilities():
    values = np.array([[0.2, 0.7, 0.5], [0.9, 0.5001, 0.0]], np.float32)
    decisions = Multilabel().decide(outputs(values))
    assert decisions.values.tolist() == [[0, 1, 0], [1, 1, 0]]
    assert np.array_equal(decisions.scores, values.astype(np.float64))
    assert Multilabel(threshold=0.6).decide(outputs(values)).values.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_multilabel_of_logits():
    logits = np.array([[-2.0, 0.0, 3.0], [1e-3, -900.0, 900.0]])
    decisions = Multilabel().decide(outputs(logits))
    assert decisions.values.tolist() == [[0, 0, 1], [1, 0, 1]]
    moderate = np.abs(logits) < 100
    assert np.allclose(decisions.scores[moderate], 1 / (1 + np.exp(-logits[moderate])), rtol=0, atol=1e-15)
    assert decisions.scores[~moderate].tolist() == [0, 1]
    assert np.array_equal(Multilabel().decide(outputs(logits.reshape(2, 1, 1, 3))).values, decisions.values)


def test_labels_that_are_not_finite_agree_with_nothing():
    values = np.array([[0.2, 0.7], [0.9, 0.6]])
    broken = np.array([[0.2, NAN], [np.inf, -np.inf]])
    task = Multilabel()
    good, bad = task.decide(outputs(values)), task.decide(outputs(broken))
    assert bad.values.tolist() == [[0, -1], [-1, -1]]
    assert np.isnan(bad.scores).tolist() == [[False, True], [True, True]]
    assert task.agreement(good, good).tolist() == [1, 1]
    assert task.agreement(bad, good).tolist() == [0.5, 0]
    assert task.agreement(bad, bad).tolist() == [0.5, 0]


def test_multilabel_fits():
    scores = outputs(np.zeros((3, 4), np.float32))
    labels = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    for dtype in (np.int64, bool, np.uint8, np.float32):
        assert Multilabel.fits(scores, labels.astype(dtype))
    assert not Multilabel.fits(scores, labels * 2)
    assert not Multilabel.fits(scores, labels * 0.5)
    assert not Multilabel.fits(scores, labels[:, :3])
    assert not Multilabel.fits(scores, np.zeros(3, int))
    assert not Multilabel.fits(scores, np.full((3, 4), "a"))
    assert not Multilabel.fits(scores, None)
    assert not Multilabel.fits(Outputs([scores.arrays[0]] * 2), labels)


def test_multilabel_needs_one_value_per_label():
    with pytest.raises(UsageError, match=r"\[2, 3, 4\] are not one value per label"):
        Multilabel().decide(outputs(np.zeros((2, 3, 4))))


# --- embeddings


def test_embedding_normalizes():
    vectors = RANDOM.normal(size=(5, 8)).astype(np.float32) * 100
    values = Embedding().decide(outputs(vectors.reshape(5, 1, 1, 8))).values
    assert values.dtype == np.float64
    assert np.allclose(np.linalg.norm(values, axis=1), 1, rtol=0, atol=1e-12)
    assert np.allclose(values * np.linalg.norm(vectors.astype(float), axis=1)[:, None], vectors, atol=1e-9)


def test_embedding_agrees_by_cosine():
    task = Embedding()
    source = task.decide(outputs([[1.0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0]]))
    other = task.decide(outputs([[3.0, 0], [1, 1], [0, 2], [-1, 0], [NAN, 1], [0, 0]]))
    assert np.allclose(task.agreement(other, source), [1, np.sqrt(0.5), 0, 0, 0, 0], rtol=0, atol=1e-12)
    assert np.isnan(other.values[4]).all()
    assert task.decide(outputs([[np.inf, 1.0]])).values.shape == (1, 2)
    assert task.agreement(Decisions(np.ones((2, 3))), Decisions(np.ones((2, 4)))).tolist() == [0, 0]
    assert task.broken_agreement == 0.75


def test_embedding_has_to_be_named():
    assert not Embedding.fits(outputs(np.zeros((4, 8))), np.zeros(4, int))
    for shape in ((2, 3, 4), (2,)):
        with pytest.raises(UsageError, match="not one vector per sample"):
            Embedding().decide(outputs(np.zeros(shape)))
