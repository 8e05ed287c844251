"""Equalization between a layer normalization and the linear layers that read it.

A few channels of transformers are far larger than the others. Dividing a channel of the normalization by
a factor, and multiplying the weights that read it by the same, moves its size from the activations, which
share one scale, to the weights. Source: Xiao et al. 2023, SmoothQuant, arXiv:2211.10438, with a strength of
0.5. The largest value of a channel is estimated from the normalization, whose output has a known spread.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import GraphModule

DEVIATIONS = 4.0
"""Largest normalized value, in standard deviations."""


def smooth(graph: "GraphModule") -> list[str]:
    """Rescale in place; the outputs stay the same up to rounding. Returns the names of the normalizations."""
    import torch

    done = []
    for node in graph.graph.nodes:
        found = _pair(node, graph)
        if found is None:
            continue
        scale, shift, weights = found
        largest = DEVIATIONS * scale.abs() + (shift.abs() if shift is not None else 0.0)
        read = torch.stack([weight.abs().amax(0) for weight in weights.values()]).amax(0)
        used = (largest > 0) & (read > 0)
        factor = torch.where(used, (largest / read.clamp_min(1e-30)).sqrt(), torch.ones_like(largest))
        # The total size of the weights stays the same: only the proportions of channels matter.
        factor = factor / factor.log().mean().exp()
        setattr(graph, str(node.args[2].target), scale / factor)
        if shift is not None:
            setattr(graph, str(node.args[3].target), shift / factor)
        for name, weight in weights.items():
            setattr(graph, name, weight * factor)
        done.append(str(node.name))
    return done


def _pair(node: Any, graph: "GraphModule") -> "tuple[Any, Any, Mapping[str, Any]] | None":
    """Scale and shift of a normalization of the last axis, and the weights that read it; None otherwise."""
    if operator_name(node) != "layer_norm" or len(node.args) < 3 or len(node.args[1]) != 1 or not node.users:
        return None
    constants = [node.args[2], *([node.args[3]] if len(node.args) > 3 and node.args[3] is not None else [])]
    readers = list(node.users)
    if any(operator_name(reader) != "linear" or reader.args[0] is not node for reader in readers):
        return None
    constants += [reader.args[1] for reader in readers]
    if any(constant is None or constant.op != "get_attr" for constant in constants):
        return None
    names = [str(constant.target) for constant in constants]
    uses = [str(user.target) for user in graph.graph.nodes if user.op == "get_attr" for _ in user.users]
    if len(set(names)) < len(names) or any(uses.count(name) != 1 for name in names):
        return None
    values = [graph.get_buffer(name) for name in names]
    shift = values[1] if len(constants) - len(readers) == 2 else None
    start = len(constants) - len(readers)
    return values[0], shift, dict(zip(names[start:], values[start:], strict=True))
