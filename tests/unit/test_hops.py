"""Every output of a model is compared after every step, and the worst decides."""

from collections.abc import Sequence

import numpy as np
import pytest

from edgeopt.evaluation.hops import Outputs, aligned, hop
from edgeopt.evaluation.metrics.fidelity_snr_db import FidelitySnrDb
from edgeopt.model import Array
from edgeopt.plugin import NamedMetric
from edgeopt.results import Hop
from edgeopt.run.scoring import Scorer

RANDOM = np.random.default_rng(0)


def logits(classes: Sequence[int]) -> Array:
    """Scores ``[n, 10]`` with these largest classes."""
    return (4 * np.eye(10, dtype=np.float32)[list(classes)]) - 2


def quantized(values: Array, bits: int = 8) -> Array:
    """Rounded to one scale for the whole tensor, as an int8 output is."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / (2**bits - 1)
    return (np.rint(values / scale) * scale).astype(np.float32)


def changed(
    before: Sequence[Array],
    after: Sequence[Array],
    *,
    lossless: bool = False,
    names: Sequence[str] = (),
    renamed: Sequence[str] | None = None,
) -> Hop:
    new = Outputs(after, names if renamed is None else renamed)
    return hop("step", "onnx", lossless=lossless, before=Outputs(before, names), after=new)


def test_a_collapsed_model_is_named_by_the_step_that_broke_it() -> None:
    found = changed([logits(np.arange(64) % 10)], [logits([3] * 64)])
    assert found.status == "broken"
    assert found.agreement == pytest.approx(7 / 64)
    assert found.reason.startswith("step broke the model: SNR ")


def test_a_conversion_is_held_to_the_outputs_and_a_quantization_is_not() -> None:
    before = logits(np.arange(64) % 10)
    noisy = before + np.float32(0.05)
    assert changed([before], [noisy], lossless=True).status == "broken"
    assert changed([before], [noisy]).status == "ok"
    exact = changed([before], [before + np.float32(1e-6)], lossless=True)
    assert exact.status == "ok"
    assert exact.max_abs_error == pytest.approx(1e-6, rel=0.2)


def test_nan_outputs_are_broken_and_stay_finite_in_the_report() -> None:
    before = logits([1, 2, 3])
    found = changed([before], [before * np.float32(np.nan)])
    assert found.status == "broken"
    assert np.isfinite([found.snr_db, found.max_abs_error]).all()


def test_the_shapes_and_the_number_of_outputs_are_kept() -> None:
    boxes, scores = np.ones((4, 16, 8, 8)), logits([1, 2, 3, 4])
    names = ("scores", "boxes")
    found = changed([scores, boxes], [scores, boxes[:, :8]], names=names)
    assert found.reason == "step changed the shape of output 'boxes' from [16, 8, 8] to [8, 8, 8]"
    assert [each.status for each in found.outputs] == ["ok", "broken"]
    assert changed([scores, boxes], [scores]).reason == "step changed the number of outputs from 2 to 1"
    assert changed([scores], [scores[:, :9]]).reason == "step changed the shape from [10] to [9]"


def test_an_output_that_died_is_broken_whatever_the_first_is_like() -> None:
    boxes = RANDOM.uniform(0, 100, (8, 50, 4)).astype(np.float32)
    scores = RANDOM.uniform(0, 0.3, (8, 50, 3)).astype(np.float32)
    found = changed([boxes, scores], [boxes, np.zeros_like(scores)], names=("boxes", "scores"))
    assert found.status == "broken" and found.snr_db == pytest.approx(0, abs=1e-9)
    assert found.reason == "step broke the model: SNR of output 'scores' 0.0 dB, largest error 0.3"
    assert found.outputs[0].status == "ok" and found.outputs[0].snr_db == 200
    almost = np.full_like(scores, 0.5) + scores / 1000
    constant = changed([boxes, almost], [boxes, np.full_like(almost, 0.5)], names=("boxes", "scores"))
    assert constant.reason == "step broke the model: every value of output 'scores' is 0.5"


@pytest.mark.parametrize("axis", [1, 2])
def test_scores_beside_coordinates_in_one_output(axis: int) -> None:
    """A detector's usual export: four coordinates up to 640 and three scores up to 1, then anchors."""
    boxes = RANDOM.uniform(0, 640, (8, 4, 50))
    scores = RANDOM.uniform(0, 1, (8, 3, 50))
    before = np.concatenate([boxes, scores], axis=1).astype(np.float32)
    if axis == 2:
        before = before.transpose(0, 2, 1)
    found = changed([before], [quantized(before)])
    assert found.snr_db is not None and found.snr_db > 45  # which is why it was reported as fine
    assert found.status == "broken"
    assert f"part 4 of 7 on axis {axis} is 0 everywhere: its range was 0.99" in found.reason
    assert changed([before], [quantized(before, bits=16)]).status == "ok"


def test_scores_that_are_small_everywhere_may_vanish() -> None:
    """Softmax over many classes of which the samples show few; dead channels of a feature map."""
    scores = RANDOM.dirichlet([0.01] * 100, 64).astype(np.float32)
    scores[:, 50:] *= np.float32(1e-4)
    assert changed([scores], [quantized(scores)]).status == "ok"
    features = RANDOM.standard_normal((4, 8, 8, 16)).astype(np.float32)
    features[..., 3] *= np.float32(1e-6)
    assert changed([features], [quantized(features)]).status == "ok"


def test_pixels_are_no_classes() -> None:
    """The position of the brightest pixel says nothing about a picture."""
    before = RANDOM.uniform(0, 1, (16, 24, 24, 1)).astype(np.float32)
    noisy = before + RANDOM.normal(0, 0.02, before.shape).astype(np.float32)
    found = changed([before], [noisy])
    assert found.status == "ok" and found.agreement is None


def test_nearly_equal_scores_do_not_break_a_model() -> None:
    before = (5 + RANDOM.uniform(0, 0.02, (64, 200))).astype(np.float32)
    found = changed([before], [before + RANDOM.normal(0, 0.02, before.shape).astype(np.float32)])
    assert found.agreement is not None and found.agreement < 0.5
    assert found.snr_db is not None and found.snr_db > 45 and found.status == "ok"


def test_outputs_that_are_missing_or_added_are_left_out() -> None:
    one, two = logits([1, 2]), logits([3, 4])
    source = Outputs([one, two], ("a", "b"))
    assert aligned(Outputs([two, one], ("b", "a")), source).arrays[0] is not two
    fewer, more = aligned(Outputs([one]), source), aligned(Outputs([one, two, two]), source)
    assert (fewer.names, more.names) == (["a"], ["a", "b"])
    with Scorer([NamedMetric.of(FidelitySnrDb())], None) as scorer:
        for outputs in (fewer, more):
            values = scorer.artifact(outputs, source).values
            assert values["fidelity_snr_db"].value == 200


def test_outputs_are_matched_by_name_and_else_by_position() -> None:
    one, two = logits([1, 2]), logits([3, 4])
    swapped = changed([one, two], [two, one], names=("a", "b"), renamed=("b", "a"))
    assert swapped.status == "ok" and [each.name for each in swapped.outputs] == ["a", "b"]
    assert changed([one, two], [two, one], names=("a", "b"), renamed=("x", "y")).status == "broken"
    assert [each.name for each in changed([one, two], [one, two]).outputs] == ["0", "1"]
