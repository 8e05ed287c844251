"""The sequence task and its metrics, compared with plain implementations and with jiwer."""

import itertools
import math

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.evaluation.metrics.cer import Cer
from edgeopt.evaluation.metrics.perplexity import Perplexity
from edgeopt.evaluation.metrics.token_accuracy import TokenAccuracy
from edgeopt.evaluation.metrics.wer import Wer
from edgeopt.evaluation.tasks.sequence import Sequence, _edits
from edgeopt.model import Outputs
from edgeopt.testing.conformance.options import check_options

NAN = np.nan
RANDOM = np.random.default_rng(0)


def outputs(array: np.ndarray) -> Outputs:
    return Outputs([array], ["y"])


def one_hot(paths: list[list[int]], classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.array(paths)]


def edit_distance(one: list, other: list) -> int:
    """The textbook table."""
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    table[:, 0], table[0] = np.arange(len(one) + 1), np.arange(len(other) + 1)
    for i, j in itertools.product(range(len(one)), range(len(other))):
        changed = table[i, j] + (one[i] != other[j])
        table[i + 1, j + 1] = min(changed, table[i, j + 1] + 1, table[i + 1, j] + 1)
    return int(table[-1, -1])


def ragged(count: int, longest: int, tokens: int, shortest: int = 0) -> list[np.ndarray]:
    return [RANDOM.integers(0, tokens, RANDOM.integers(shortest, longest + 1)) for _ in range(count)]


def joined(sequences: list[np.ndarray]) -> list[str]:
    return [" ".join(map(str, sequence.tolist())) for sequence in sequences]


# task


@pytest.mark.parametrize("decode", ["steps", "next"])
def test_steps_are_the_best_classes(decode):
    array = RANDOM.random((3, 4, 5)).astype(np.float32)
    array[1, 2, 0] = np.inf
    array[2, 3, 1] = NAN
    decisions = Sequence(decode=decode).decide(outputs(array))
    wanted = array.argmax(axis=2)
    wanted[1, 2] = wanted[2, 3] = -1
    assert np.array_equal(decisions.values, wanted)
    assert decisions.scores.dtype == np.float64
    assert np.array_equal(decisions.scores, array, equal_nan=True)
    turned = Sequence(decode=decode, time_axis=2).decide(outputs(array.transpose(0, 2, 1)))
    assert np.array_equal(turned.values, wanted)
    assert turned.scores.shape == (3, 4, 5)


def test_ctc_is_decoded_by_the_best_path():
    paths = [[0, 1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0], [3, 3, 2, 2, 2, 0, 2]]
    decisions = Sequence(decode="ctc").decide(outputs(one_hot(paths, 4)))
    assert [value.tolist() for value in decisions.values] == [[1, 1, 2], [], [3, 2, 2]]
    last = Sequence(decode="ctc", blank=-1).decide(outputs(one_hot(paths, 4)))
    assert [value.tolist() for value in last.values] == [[0, 1, 0, 1, 2], [0], [2, 0, 2]]
    broken = one_hot(paths, 4)
    broken[0, 1:3] = NAN
    decisions = Sequence(decode="ctc").decide(outputs(broken))
    assert decisions.values[0].tolist() == [-1, 1, 2]


def test_ctc_equals_a_plain_decoder():
    array = RANDOM.random((20, 15, 3))
    decisions = Sequence(decode="ctc", blank=1).decide(outputs(array))
    for path, value in zip(array.argmax(axis=2), decisions.values, strict=True):
        assert [token for token, _ in itertools.groupby(path) if token != 1] == value.tolist()


def test_agreement_of_steps():
    source = Sequence().decide(outputs(one_hot([[1, 2, 0, 1], [0, 0, 2, 2]], 3)))
    changed = one_hot([[1, 2, 0, 2], [0, 0, 2, 2]], 3)
    changed[1, 0] = NAN
    broken = Sequence().decide(outputs(changed))
    assert Sequence().agreement(source, source).tolist() == [1, 1]
    assert Sequence().agreement(broken, source).tolist() == [0.75, 0.75]
    assert Sequence().agreement(broken, broken).tolist() == [1, 0.75]


def test_agreement_of_ctc_is_the_edit_distance():
    task = Sequence(decode="ctc")
    source = task.decide(outputs(one_hot([[1, 0, 2, 0, 1, 0, 2], [0] * 7, [0] * 7, [1] + [0] * 6], 3)))
    other = task.decide(
        outputs(one_hot([[1, 0, 2, 0, 0, 0, 2], [0] * 7, [1, 0, 1, 0, 0, 0, 0], [2, 1, 0, 1, 2, 1, 2]], 3))
    )
    assert task.agreement(source, source).tolist() == [1, 1, 1, 1]
    assert task.agreement(other, source).tolist() == [0.75, 1, 0, 0]
    broken = task.decide(outputs(np.full((1, 3, 3), NAN)))
    assert task.agreement(broken, broken).tolist() == [0]


def test_edit_distance_equals_the_table():
    for one, other in zip(ragged(60, 9, 3), ragged(60, 9, 3), strict=True):
        assert _edits(one, other) == edit_distance(one.tolist(), other.tolist())


def test_steps_are_recognized_by_their_labels():
    array, labels = np.zeros((5, 4, 3), np.float32), np.zeros((5, 4), np.int64)
    assert Sequence.fits(outputs(array), labels)
    assert not Sequence.fits(outputs(array), None)
    assert not Sequence.fits(outputs(array), labels[:, :3])
    assert not Sequence.fits(outputs(array), labels.astype(np.float32))
    assert not Sequence.fits(outputs(array), list(labels))
    assert not Sequence.fits(outputs(array[:, :, :1]), labels)
    assert not Sequence.fits(outputs(array.astype(np.int8)), labels)
    assert not Sequence.fits(outputs(array[0]), labels)
    assert not Sequence.fits(Outputs([array, array]), labels)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 3), r"outputs of shape \[2, 3\] are not \[samples, steps, classes\]"),
        ({}, (2, 3, 1), "have 1 class at each step"),
        (
            {"decode": "ctc", "blank": 5},
            (2, 3, 5),
            "the blank 5 is out of range: the model has the classes 0 to 4",
        ),
        ({"decode": "ctc", "blank": -6}, (2, 3, 5), "the blank -6 is out of range"),
        ({"output": "z"}, (2, 3, 5), "reads the output 'z', which the model does not have"),
    ],
)
def test_outputs_of_another_task(options, shape, message):
    with pytest.raises(UsageError, match=message):
        Sequence(**options).decide(outputs(np.zeros(shape)))


def test_options():
    with pytest.raises(ValidationError):
        Sequence(time_axis=0)
    plugins = [
        Sequence(),
        TokenAccuracy(),
        Perplexity(),
        Cer(symbols="ab"),
        Wer(symbols="ab ", separator=" "),
    ]
    for plugin in [*plugins, Wer(separator=2)]:
        check_options(plugin)


# token_accuracy


def test_token_accuracy():
    values = RANDOM.integers(0, 4, (30, 7))
    labels = RANDOM.integers(0, 4, (30, 7))
    labels[RANDOM.random((30, 7)) < 0.3] = -100
    labels[4] = -100
    values[5, 2] = -1
    score = TokenAccuracy().score(values, labels)
    kept = labels != -100
    assert abs(score.value - (values == labels)[kept].mean()) < 1e-12
    assert score.per_sample is None
    assert score.evidence.shape == (30, 2)
    assert score.evidence[4].tolist() == [0, 0]
    with_zero = TokenAccuracy(ignore=0).score(values, np.where(kept, labels, 1))
    assert with_zero.evidence[:, 1].sum() == (np.where(kept, labels, 1) != 0).sum()


def test_token_accuracy_of_sequences_of_their_own_lengths():
    with pytest.raises(UsageError, match="one token per step") as error:
        TokenAccuracy().score(ragged(4, 3, 5), np.zeros((4, 3), int))
    assert "wer or cer" in error.value.fix


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([np.zeros(3, int), np.zeros(2, int)], "the label sequences differ in length"),
        (np.zeros((2, 3)), "labels are float64, not integers"),
        (np.zeros((2, 4), int), r"outputs for \[2, 3\] .* with labels of shape \[2, 4\]"),
        (np.array([[0, 1, 2], [0, -1, 2]]), "label -1 of sample 1, step 1 is negative"),
        (np.full((2, 3), -100), "all labels are -100, which does not count"),
    ],
)
def test_labels_that_are_not_one_per_step(labels, message):
    for metric, array in ((TokenAccuracy(), np.zeros((2, 3), int)), (Perplexity(), np.zeros((2, 3, 4)))):
        with pytest.raises(UsageError, match=message):
            metric.score(array, labels)


# perplexity


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", ["logits", "log-likelihoods", "probabilities"])
def test_perplexity(kind):
    logits = 3 * RANDOM.standard_normal((20, 6, 8))
    labels = RANDOM.integers(0, 8, (20, 6))
    labels[RANDOM.random((20, 6)) < 0.3] = -100
    chosen = softmax(logits)
    likelihoods = [chosen[i, t, labels[i, t]] for i in range(20) for t in range(6) if labels[i, t] >= 0]
    scores = {"logits": logits, "log-likelihoods": np.log(chosen), "probabilities": chosen}[kind]
    score = Perplexity().score(scores, labels)
    assert abs(score.value - math.exp(-np.mean(np.log(likelihoods)))) < 1e-9
    assert score.evidence[:, 1].sum() == len(likelihoods)
    assert not Perplexity().higher_is_better


def test_perplexity_of_uniform_scores_is_the_number_of_classes():
    labels = np.zeros((3, 4), int)
    assert abs(Perplexity().score(np.zeros((3, 4, 7)), labels).value - 7) < 1e-12
    assert abs(Perplexity().score(np.full((3, 4, 7), 1 / 7), labels).value - 7) < 1e-12


def test_perplexity_recognizes_probabilities_of_8_bits():
    exact = softmax(RANDOM.standard_normal((10, 5, 40)))
    stored = np.clip(np.rint(exact * 256), 1, 255) / 256
    assert np.abs(stored.sum(axis=2) - 1).max() > 1e-3
    labels = RANDOM.integers(0, 40, (10, 5))
    wanted, got = (Perplexity().score(scores, labels).value for scores in (exact, stored))
    assert abs(got / wanted - 1) < 0.1  # taken for logits, they would give nearly 40
    between = RANDOM.random((10, 5, 40))  # in 0..1, but not probabilities
    losses = -np.log(np.take_along_axis(softmax(between), labels[:, :, np.newaxis], axis=2))
    assert abs(Perplexity().score(between, labels).value - math.exp(losses.mean())) < 1e-9


def test_perplexity_that_is_infinite():
    logits, labels = RANDOM.standard_normal((4, 3, 5)), np.zeros((4, 3), int)
    labels[2, 1] = -100
    before = Perplexity().score(logits, labels)
    logits[2, 1] = NAN  # does not count
    assert abs(Perplexity().score(logits, labels).value - before.value) < 1e-12
    logits[:, :, 4] = -np.inf  # an impossible class
    assert math.isfinite(Perplexity().score(logits, labels).value)
    logits[1, 2, 3] = NAN
    score = Perplexity().score(logits, labels)
    assert score.value == math.inf
    assert math.isfinite(Perplexity().weighted(score.evidence, np.array([1.0, 0, 2, 1])))
    certain = one_hot([[1, 1, 1]] * 4, 5)
    assert Perplexity().score(certain, labels).value == math.inf
    assert Perplexity().score(certain, labels + (labels == 0)).value == 1
    far = np.zeros((1, 1, 2))
    far[0, 0, 1] = 1e6
    assert Perplexity().score(far, np.zeros((1, 1), int)).value == math.inf


def test_perplexity_of_wrong_scores_and_labels():
    with pytest.raises(
        UsageError, match="label 5 of sample 1, step 0 is out of range: the model has 5 classes"
    ):
        Perplexity().score(np.zeros((2, 2, 5)), np.array([[0, 4], [5, 0]]))
    with pytest.raises(UsageError, match=r"scores of shape \[2, 5\] are not"):
        Perplexity().score(np.zeros((2, 5)), np.array([0, 4]))


# wer and cer


def test_wer_of_tokens_equals_jiwer_and_the_table():
    jiwer = pytest.importorskip("jiwer")
    for tokens, longest in ((3, 6), (20, 12)):
        found, labels = ragged(40, longest, tokens), ragged(40, longest, tokens, shortest=1)
        score = Wer().score(found, labels)
        assert abs(score.value - jiwer.wer(joined(labels), joined(found))) < 1e-9
        edits = [edit_distance(a.tolist(), b.tolist()) for a, b in zip(found, labels, strict=True)]
        assert score.evidence.tolist() == [[e, len(b)] for e, b in zip(edits, labels, strict=True)]
        assert Cer().score(found, labels).value == score.value


def test_wer_of_words_and_cer_of_characters_equal_jiwer():
    jiwer = pytest.importorskip("jiwer")
    symbols = "_ab c'"
    texts = [
        ("ab c", "ab c"),
        ("ab  c", "ab b c"),
        ("a", "ab"),
        ("b ca", "ca b"),
        ("c'a b", "ca b a"),
    ]
    found, labels = ([np.array([symbols.index(c) for c in pair[side]]) for pair in texts] for side in (0, 1))
    hypotheses, references = ([pair[side] for pair in texts] for side in (0, 1))
    for separator in (" ", symbols.index(" ")):
        score = Wer(symbols=symbols, separator=separator).score(found, labels)
        assert abs(score.value - jiwer.wer(references, hypotheses)) < 1e-9
    plain = Wer(separator=symbols.index(" ")).score(found, labels)
    assert np.array_equal(plain.evidence, score.evidence)
    assert abs(Cer(symbols=symbols).score(found, labels).value - jiwer.cer(references, hypotheses)) < 1e-9


def test_wer_of_padded_labels():
    labels = ragged(10, 5, 4, shortest=1)
    padded = np.full((10, 5), -1)
    for row, label in zip(padded, labels, strict=True):
        row[: len(label)] = label
    found = RANDOM.integers(0, 4, (10, 5))
    wanted = Wer().score(list(found), labels)
    assert Wer().score(found, padded).value == wanted.value
    assert Wer(padding=9).score(found, np.where(padded < 0, 9, padded)).value == wanted.value


def test_negative_tokens_are_wrong():
    labels = [np.array([1, 2, 3]), np.array([2])]
    assert Wer().score([np.array([1, -1, 3]), np.array([-1])], labels).evidence[:, 0].tolist() == [1, 1]
    assert Cer(symbols="abcd").score([np.array([1, 9, 3]), np.array([2])], labels).value == 0.25
    words = Wer(separator=0).score([np.array([1, -1, 0, 3])], [np.array([1, 2, 0, 3])])
    assert words.value == 0.5


def test_equal_symbols_are_equal_tokens():
    assert Cer(symbols="aab").score([np.array([0, 2])], [np.array([1, 2])]).value == 0


def test_wer_may_exceed_one_and_counts_insertions_of_empty_labels():
    score = Wer().score([np.array([1, 1, 1]), np.array([5])], [np.array([2]), np.array([])])
    assert score.value == 4.0
    assert math.isnan(Wer().weighted(score.evidence, np.array([0.0, 1.0])))


@pytest.mark.parametrize(
    ("metric", "found", "labels", "message"),
    [
        (Wer(), np.zeros((2, 3), int), np.zeros((3, 3), int), "2 outputs but 3 labels"),
        (
            Cer(),
            np.zeros((2, 3), int),
            np.array([[0, 1], [0, -100]]),
            "label 1 has the token -100, which is negative",
        ),
        (Cer(), np.zeros((2, 3), int), np.array([0, 1]), r"label 0 is not a sequence of tokens: shape \[\]"),
        (Cer(), np.zeros((2, 3), int), np.zeros((2, 3)), "label 0 is not a sequence of tokens: .* float64"),
        (Cer(), np.zeros((2, 3, 4), int), np.zeros((2, 3), int), "the output of sample 0 is not a sequence"),
        (
            Cer(symbols="abc"),
            np.zeros((1, 3), int),
            np.array([[2, 3]]),
            "token 3, but there are 3 symbols, 0 to 2",
        ),
        (Wer(), np.zeros((2, 3), int), np.full((2, 3), -1), "all label sequences are empty"),
    ],
)
def test_labels_that_are_no_sequences(metric, found, labels, message):
    with pytest.raises(UsageError, match=message):
        metric.score(found, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": " "}, "the separator ' ' is not a character of 'symbols'"),
        ({"separator": "ab", "symbols": "abc"}, "the separator 'ab' is not a character of 'symbols'"),
        ({"separator": 3, "symbols": "abc"}, "the separator 3 is not a token"),
        ({"separator": -1}, "the separator -1 is not a token"),
    ],
)
def test_separators_that_are_no_tokens(options, message):
    with pytest.raises(ValidationError, match=message):
        Wer(**options)


# weights


def test_weights_are_repetitions():
    count = 12
    scores = RANDOM.standard_normal((count, 5, 4))
    values, labels = scores.argmax(axis=2), RANDOM.integers(0, 4, (count, 5))
    labels[RANDOM.random(labels.shape) < 0.2] = -100
    lists, texts = ragged(count, 6, 5), ragged(count, 6, 5, shortest=1)
    cases = [
        (TokenAccuracy(), values, labels),
        (Perplexity(), scores, labels),
        (Cer(), lists, texts),
        (Wer(separator=0), lists, texts),
    ]
    for metric, found, target in cases:
        score = metric.score(found, target)
        assert abs(metric.weighted(score.evidence, np.ones(count)) - score.value) < 1e-12
        values = metric.scored(found, target).contributions.values
        slopes = [
            metric.weighted(score.evidence, 1 + 1e-6 * one) - metric.weighted(score.evidence, 1 - 1e-6 * one)
            for one in np.eye(count)
        ]
        assert np.allclose(values, score.value + count * np.array(slopes) / 2e-6, rtol=1e-6, atol=1e-6)
        for _ in range(5):
            weights = RANDOM.integers(0, 4, count)
            repeated = np.repeat(np.arange(count), weights)
            again = (
                metric.score([found[i] for i in repeated], [target[i] for i in repeated])
                if isinstance(found, list)
                else metric.score(found[repeated], target[repeated])
            )
            assert abs(metric.weighted(score.evidence, weights.astype(float)) - again.value) < 1e-9
