"""Which operators of ONNX can be converted to PyTorch, and why others cannot."""

from typing import NamedTuple

from edgeopt.formats.torch.onnx_operators import (  # noqa: F401 - importing them fills the table
    activations,
    arithmetic,
    layers,
    recurrent,
    reductions,
    sampling,
    shapes,
)
from edgeopt.formats.torch.onnx_operators.table import TABLE

EXPANDED = frozenset("AffineGrid Attention CenterCropPad RotaryEmbedding SwiGLU".split())
"""Operators that are replaced by the functions of which the specification composes them."""
STRUCTURAL = frozenset({"Constant", "If"})
DOMAINS = ("", "ai.onnx")
FIRST_OPSET = 7
"""The first operator set with today's broadcasting."""
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinear", "Integer", "NBits")
ONLY_ONNX = "or leave only onnx in 'formats'"
OTHERWISE = f"export the model without it; {ONLY_ONNX}"


class Refusal(NamedTuple):
    """Why nodes of an operator cannot be converted to PyTorch, and the way out."""

    cause: str
    fix: str


def refusal(operator: str, domain: str = "") -> Refusal | None:
    """The reason not to convert nodes of an operator; None if there is none."""
    if domain in DOMAINS and (operator in TABLE or operator in EXPANDED or operator in STRUCTURAL):
        return None
    if any(part in operator for part in QUANTIZED):
        return Refusal("the model is quantized already", "start from the float model")
    if operator in ("Loop", "Scan"):
        return Refusal(
            "loops are not carried", f"export the model without loops, at fixed lengths; {ONLY_ONNX}"
        )
    if domain not in DOMAINS:
        return Refusal(
            f"the operator set {domain!r} is not carried",
            f"export the model to standard operators; {ONLY_ONNX}",
        )
    return Refusal("this operator is not carried", OTHERWISE)
