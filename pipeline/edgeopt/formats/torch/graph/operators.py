"""What the operators of a graph are called, and which of them are alike."""

import operator
from typing import Any

NOTHING = frozenset(
    "contiguous clone alias detach detach_ lift_fresh_copy lift_fresh "
    "dropout dropout_ feature_dropout alpha_dropout native_dropout".split()
)
"""Operators that change no value in a program for inference."""

UNARY = frozenset(
    "relu relu6 hardtanh sigmoid tanh hardswish hardsigmoid leaky_relu elu gelu silu mish softplus selu "
    "exp log sqrt rsqrt neg abs clamp clamp_min clamp_max square reciprocal".split()
)
BINARY = frozenset("add sub mul div maximum minimum".split())
AFFINE = frozenset("add sub mul div".split())
SOFTMAX = frozenset("softmax _softmax log_softmax".split())
CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())
LAYERS = CONVOLUTIONS | {"linear"}
WEIGHTED = LAYERS | frozenset("conv_transpose1d conv_transpose2d conv_transpose3d convolution".split())
"""Operators that hold nearly all weights and arithmetic of a network: int8 is for them."""

RESHAPES = frozenset(
    "reshape view view_copy _unsafe_view flatten squeeze squeeze_copy unsqueeze unsqueeze_copy".split()
)
"""Ways to write a reshape to the shape of the result."""

MOVES = frozenset("permute permute_copy transpose transpose_copy t t_copy".split())
"""Operators that move data without computing."""

SYNONYMS = {"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"}


def operator_name(node: object) -> str:
    """``relu`` for a call of ``aten.relu.default``; ``getitem`` for the Python operator; else empty."""
    import torch

    if not isinstance(node, torch.fx.Node) or node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname if node.target.namespace == "aten" else str(node.target)
    return "getitem" if node.target is operator.getitem else ""


def count_transposes(graph: Any) -> int:
    """How many nodes of a ``torch.fx.Graph`` only move data."""
    return sum(operator_name(node) in MOVES for node in graph.nodes)
