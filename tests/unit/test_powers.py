"""Variances and cubes out of single operators, as JAX and TensorFlow write them."""

import pytest

from edgeopt.formats.powers import Step, powers


def steps(text: str) -> list[Step]:
    """Operators, such as ``b = mul a a``; constants are left out."""
    lines = [line.split() for line in text.strip().splitlines()]
    return [Step(kind, tuple(operands), result) for result, _, kind, *operands in lines]


def found(text: str) -> str:
    """The results of the operators that stay in float."""
    listed = steps(text)
    return " ".join(str(listed[at].result) for at in powers(listed))


FAST_NORMALIZATION = """
    mean = mean x
    square = mul x x
    mean2 = mean square
    square2 = mul mean mean
    variance = sub mean2 square2
    positive = max variance
    shifted = add positive
    root = root shifted
    wide = shape root
    inverse = inverse wide
    scaled = mul inverse
    centred = sub x mean
    y = mul centred scaled
"""
NORMALIZATION = """
    mean = mean x
    centred = sub x mean
    square = mul centred centred
    variance = mean square
    root = root variance
    y = mul centred root
"""
GELU = """
    scaled = mul x
    same = shape scaled
    square = mul x same
    cube = mul x square
    sum = add x cube
    inside = mul sum
    tanh = tanh inside
    shifted = add tanh
    y = mul x shifted
"""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (FAST_NORMALIZATION, "mean square mean2 square2 variance positive shifted root wide inverse"),
        (NORMALIZATION, "square variance root"),
        (GELU, "scaled same square cube sum inside tanh"),
        ("a = layer x\n b = root a", ""),  # of another value
        ("b = root x", ""),
        ("s = mul x x\n a = sub s x\n b = root a", ""),  # x may be anything
        ("a = layer x\n b = mul a\n c = tanh b", ""),
        ("a = mul x z\n b = mul a x\n c = add b x\n d = tanh c", ""),  # a gate, of inputs
        ("g = layer x\n s = layer x\n a = mul g s\n b = tanh a", ""),
    ],
)
def test_what_stays_in_float(text: str, kept: str) -> None:
    assert found(text) == kept
