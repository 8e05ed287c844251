"""Reduction of exported programs to one plain form, independent of the framework that they come from.

The plain form is a ``torch.fx.GraphModule`` of functional ATen operators in which every weight is a buffer.
Constants are folded, batch norm and other per-channel arithmetic is merged into the preceding convolution
or linear layer, zero padding into the following convolution, and the permutes that a channels-last framework
inserts around each convolution are removed where they cancel. The result is numerically equivalent to the
program up to float rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgeopt.formats.torch.graph import canonicalize as torch_canonicalize
from edgeopt.formats.torch.graph import conditions as torch_conditions
from edgeopt.formats.torch.graph import cumulative as torch_cumulative
from edgeopt.formats.torch.graph import equivalents as torch_equivalents
from edgeopt.formats.torch.graph import folding as torch_folding
from edgeopt.formats.torch.graph import permutes as torch_permutes
from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.lab.engine import one_thread

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

ROUNDS = 64
"""Upper bound on the number of rounds: two rules that undo each other must not hang a run."""

# Canonicalization comes first, so that all later rules match one spelling of each operator. Folding
# precedes the permute rules: it removes operators that a permute would otherwise be moved across.
RULES: "tuple[Callable[[GraphEditor, Node], bool], ...]" = (
    torch_canonicalize.remove_no_op,
    torch_canonicalize.canonicalize,
    torch_equivalents.recognize_prelu,
    torch_equivalents.limit,
    torch_equivalents.compose,
    torch_equivalents.first_result,
    torch_cumulative.scan,
    torch_cumulative.extreme_of_two,
    torch_cumulative.distances,
    torch_conditions.fixed_number,
    torch_conditions.number_to_tensor,
    torch_conditions.number_arithmetic,
    torch_conditions.masked_assignment,
    torch_folding.fold_constant,
    torch_folding.fold_batch_norm,
    torch_folding.fold_affine,
    torch_folding.fold_padding,
    torch_permutes.join_permutes,
    torch_permutes.join_reshapes,
    torch_permutes.sink_permute,
    torch_permutes.permute_into_linear,
)
"""Rewriting rules: each inspects one node and returns whether it changed the graph."""


def simplify(
    module: "GraphModule",
    inputs: "Sequence[torch.Tensor]",
    names: Sequence[str] = (),
    constants: Mapping[int, str] | None = None,
) -> "GraphModule":
    """Rewrite a graph of functional ATen operators into the plain form, for fixed input shapes.

    Args:
        module: takes its inputs by position; its outputs are flattened.
        inputs: example tensors of the right shape and dtype, such as zeros; their values are not used.
        names: names for the inputs of the result.
        constants: names for tensors by data pointer, where they differ from those in the module.

    Returns:
        A module that returns one tensor, or a tuple of several.
    """
    import torch

    with torch.no_grad(), one_thread():
        editor = GraphEditor(module, tuple(inputs), constants or {})
        for _ in range(ROUNDS):
            # Dead nodes count as readers: removing them first lets more rules apply in this round.
            editor.remove_unused()
            editor.infer_shapes()
            if not _apply_rules(editor):
                break
        editor.remove_unused()
        return editor.finish(names)


def _apply_rules(editor: GraphEditor) -> bool:
    """Apply at most one rule to every node; return whether any applied."""
    changed = False
    for node in list(editor.graph.nodes):
        # A rule may erase its node and others, so any() has to stop at the first one that applies.
        if node.op == "call_function" and not node._erased and any(rule(editor, node) for rule in RULES):
            changed = True
    return changed
