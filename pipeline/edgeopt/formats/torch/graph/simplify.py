"""The graph of an exported program in one plain form, whichever framework it came from.

The plain form is a ``torch.fx.GraphModule`` of functional aten operators in which every weight is a
buffer: constants are folded, batch norm and other per-channel arithmetic lies inside the convolution or
linear layer before it, zero padding inside the convolution after it, and the permutes that a
channels-last framework puts around each convolution are gone where they cancel out. It computes what
the program computed, up to float rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgeopt.formats.torch.graph import canonicalize as torch_canonicalize
from edgeopt.formats.torch.graph import folding as torch_folding
from edgeopt.formats.torch.graph import permutes as torch_permutes
from edgeopt.formats.torch.graph.graph_editor import Draft
from edgeopt.formats.torch.lab.engine import one_thread

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

ROUNDS = 64
"""More rewriting rounds than any graph seen needed; a rule that undoes another must not hang a run."""

RULES: "tuple[Callable[[Draft, Node], bool], ...]" = (
    torch_canonicalize.drop_nothing,
    torch_canonicalize.respell,
    torch_folding.fold_constant,
    torch_folding.fold_batch_norm,
    torch_folding.fold_affine,
    torch_folding.fold_padding,
    torch_permutes.join_permutes,
    torch_permutes.join_reshapes,
    torch_permutes.sink_permute,
    torch_permutes.permute_into_linear,
)
"""Each looks at one node and says whether it changed something."""


def simplify(
    module: "GraphModule",
    inputs: "Sequence[torch.Tensor]",
    names: Sequence[str] = (),
    constants: Mapping[int, str] | None = None,
) -> "GraphModule":
    """Rewrite a graph of functional aten operators into the plain form, for inputs like the given ones.

    Args:
        module: takes its inputs by position; whatever it returns is flattened.
        inputs: examples of the right shape and dtype, such as zeros; the values do not matter.
        names: how the inputs are to be called in the result.
        constants: how tensors are to be called, by the address of their data, if not as in the module.

    Returns:
        A module that returns one tensor, or a tuple of several.
    """
    import torch

    with torch.no_grad(), one_thread():
        draft = Draft(module, tuple(inputs), constants or {})
        for _ in range(ROUNDS):
            draft.clean()
            draft.measure()
            if not _round(draft):
                break
        draft.clean()
        return draft.finish(names)


def _round(draft: Draft) -> bool:
    changed = False
    for node in list(draft.graph.nodes):
        if node.op == "call_function" and not node._erased and any(rule(draft, node) for rule in RULES):
            changed = True
    return changed
