"""Names and categories of the operators in a graph."""

import operator
from typing import Any

NO_OPS = frozenset(
    "contiguous clone alias detach detach_ lift_fresh_copy lift_fresh "
    "dropout dropout_ feature_dropout alpha_dropout native_dropout".split()
)
"""Operators without effect on values at inference."""

UNARY = frozenset(
    "relu relu6 hardtanh sigmoid tanh hardswish hardsigmoid leaky_relu elu gelu silu mish softplus selu "
    "exp log sqrt rsqrt neg abs clamp clamp_min clamp_max square reciprocal".split()
)
BINARY = frozenset("add sub mul div maximum minimum".split())
AFFINE = frozenset("add sub mul div".split())
SOFTMAX = frozenset("softmax _softmax log_softmax".split())
CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())
LAYERS = CONVOLUTIONS | {"linear"}
TRANSPOSED = frozenset("conv_transpose1d conv_transpose2d conv_transpose3d".split())
WEIGHTED = LAYERS | TRANSPOSED | {"convolution"}
"""Operators with nearly all weights and MACs of a network: those that int8 quantization targets."""

POOLS = frozenset(
    f"{kind}_pool{rank}d{suffix}"
    for kind, suffix in (("max", ""), ("max", "_with_indices"), ("avg", ""))
    for rank in (1, 2, 3)
)
"""Pooling operators with a kernel and a stride."""

RESHAPES = frozenset(
    "reshape view view_copy _unsafe_view flatten squeeze squeeze_copy unsqueeze unsqueeze_copy".split()
)
"""Operators equivalent to a reshape to the shape of their result."""

TRANSPOSES = frozenset("permute permute_copy transpose transpose_copy t t_copy".split())
"""Operators that reorder data in memory without arithmetic."""

SYNONYMS = {"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"}


def operator_name(node: object) -> str:
    """Name of the called operator without overload: ``relu``, ``getitem``; empty for other nodes.

    Operators outside the ``aten`` namespace keep their full name.
    """
    import torch

    if not isinstance(node, torch.fx.Node) or node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname if node.target.namespace == "aten" else str(node.target)
    return "getitem" if node.target is operator.getitem else ""


def count_transposes(graph: Any) -> int:
    """Number of nodes of a ``torch.fx.Graph`` that only transpose data."""
    return sum(operator_name(node) in TRANSPOSES for node in graph.nodes)
