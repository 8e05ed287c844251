"""The scales by which training compares the parts of an output."""

import numpy as np
import pytest

from edgeopt.formats.output_scales import scales_of
from edgeopt.formats.tflite.quantize.coarse_weights import relative_noise

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("axis", [1, 2])
def test_boxes_and_scores_of_one_tensor_count_alike(axis: int) -> None:
    head = RANDOM.standard_normal((4, 100, 6)) * [100, 100, 100, 100, 0.1, 0.01]
    output = head if axis == 2 else head.transpose(0, 2, 1)
    scales = scales_of(output)
    assert scales.shape == ((1, 1, 6) if axis == 2 else (1, 6, 1))
    assert np.std(output / scales, axis=(0, 3 - axis)) == pytest.approx([1, 1, 1, 1, 1, 0.14], rel=0.2)


def test_what_hardly_changes_is_not_magnified() -> None:
    output = RANDOM.standard_normal((8, 3, 50))
    output[:, 1] = 7.0
    output[:, 2] = 0.0
    one, constant, nothing = scales_of(output).ravel()
    assert one == pytest.approx(1, rel=0.1)
    assert constant == pytest.approx(0.7)  # a tenth of its size
    assert nothing == pytest.approx(1e-3 * np.sqrt(np.mean(output**2)))


def test_a_row_of_values_has_one_scale() -> None:
    assert scales_of(np.array([[3.0, -4.0], [4.0, 3.0]])).tolist() == [[pytest.approx(np.sqrt(12.5))]]
    assert scales_of(np.zeros((2, 3, 4))).min() > 0


def test_noise_of_small_channels_counts_like_that_of_large_ones() -> None:
    """Otherwise bits go to the logits of a detector, and its boxes are wrong."""
    head = RANDOM.standard_normal((16, 1, 2, 200)) * np.array([100.0, 1.0])[:, None]
    noise = RANDOM.standard_normal(head.shape) * np.array([0.0, 0.1])[:, None]
    before, after = ([[sample] for sample in output] for output in (head, head + noise))
    assert relative_noise(before, after) == pytest.approx(0.01 / 2, rel=0.1)
    # A row of class scores is one part.
    before, after = ([[sample.reshape(1, -1)] for sample in output] for output in (head, head + noise))
    assert relative_noise(before, after) == pytest.approx(0.01 / 100**2, rel=0.1)
