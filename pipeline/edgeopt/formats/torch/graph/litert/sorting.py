"""Sorting and selection of the largest values as TOPK_V2, TFLite's only operator that sorts.

litert-torch's converter recognises it only where values and indices of the largest values are both read.
"""

import operator
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Node

KINDS = frozenset({"topk", "sort", "argsort"})


def select_largest(editor: GraphEditor, node: "Node") -> bool:
    """Replace ``topk``, ``sort`` and ``argsort`` by the largest values along the last axis.

    The smallest values are the largest of ``-x``; equal values keep their order.
    """
    import torch
    from litert_torch.backend.experimental import torch_tfl  # noqa: F401 - registers the operator

    if operator_name(node) not in KINDS or not isinstance(node.target, torch._ops.OpOverload):
        return False
    declared = node.target._schema.arguments
    given: dict[str, Any] = {each.name: each.default_value for each in declared}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    x: Any = given["self"]
    shape = editor.shape(x)
    if not shape or editor.is_constant(x) or not editor.dtype(x).is_floating_point:
        return False
    axis, count = given["dim"] % len(shape), given.get("k")
    is_descending = given["largest" if "largest" in given else "descending"]
    order = [*range(len(shape))]
    order[axis], order[-1] = order[-1], order[axis]
    sizes = [shape[at] for at in order]
    aten = torch.ops.aten
    if order[axis] != axis:
        x = editor.insert(node, aten.permute.default, (x, order), tuple(sizes))
    if not is_descending:
        x = editor.insert(node, aten.neg.default, (x,), tuple(sizes))
    sizes[-1] = sizes[-1] if count is None else count
    both = editor.insert(node, torch.ops.tfl.topk_v2.default, (x, sizes[-1]), tuple(sizes))

    def result(position: int) -> "Node":
        made = editor.insert(node, operator.getitem, (both, position), tuple(sizes))
        if position == 1:
            made = editor.insert(node, aten.to.dtype, (made, torch.int64), tuple(sizes))
        elif not is_descending:
            made = editor.insert(node, aten.neg.default, (made,), tuple(sizes))
        if order[axis] != axis:
            made = editor.insert(node, aten.permute.default, (made, order), tuple(sizes[at] for at in order))
        return made

    if operator_name(node) == "argsort":
        return editor.replace(node, result(1))
    for reader in list(node.users):
        editor.replace(reader, result(int(reader.args[1])))
    editor.graph.erase_node(node)
    return True
