"""Rewriting of what depends on values into operators of fixed shapes, where that is exact.

Most converters and runtimes have no branches and no Python numbers: both sides of a condition are computed,
and the result is chosen from them.
"""

import operator
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node

NUMBERS = frozenset({"item", "_local_scalar_dense"})
TAKES_TENSOR = frozenset(
    {"add", "sub", "mul", "div", "rsub", "eq", "ne", "gt", "ge", "lt", "le", "maximum", "minimum"}
)
"""Operators of which a number and a tensor without axes give the same result."""
ARITHMETIC = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.neg: "neg",
}
"""Arithmetic of Python numbers, and the same of tensors."""


def number_to_tensor(editor: GraphEditor, node: "Node") -> bool:
    """Use a value as a tensor without axes instead of the Python number that ``.item()`` makes of it."""
    import torch

    if operator_name(node) not in NUMBERS or not editor.is_node(node.args[0]):
        return False
    source: Any = node.args[0]
    shape = editor.shape(source)
    if shape is None or not all(map(_takes_tensor, node.users)):
        return False
    if shape:
        source = editor.insert(node, torch.ops.aten.reshape.default, (source, []), ())
    return editor.replace(node, source)


def _takes_tensor(node: "Node") -> bool:
    if node.target in ARITHMETIC:
        return all(map(_takes_tensor, node.users))
    return operator_name(node) in TAKES_TENSOR


def number_arithmetic(editor: GraphEditor, node: "Node") -> bool:
    """Arithmetic of Python numbers, of which one has become a tensor."""
    import torch

    tensors = [each for each in editor.nodes_in(node.args) if editor.shape(each) == ()]
    if node.target not in ARITHMETIC or not tensors:
        return False
    args = tuple(
        value if editor.is_node(value) else editor.insert_constant(node, torch.tensor(float(value)), "number")
        for value in node.args
    )
    packet = getattr(torch.ops.aten, ARITHMETIC[node.target])
    overload = packet.default if node.target is operator.neg else packet.Tensor
    return editor.replace(node, editor.insert(node, overload, args, ()))


def fixed_number(editor: GraphEditor, node: "Node") -> bool:
    """The size of a tensor of known shape, and Python arithmetic of such sizes, as a number."""
    import torch

    computes = getattr(node.target, "__module__", "") in ("_operator", "math")
    if operator_name(node) == "sym_size" and (shape := editor.shape(node.args[0])) is not None:
        value: Any = shape[int(node.args[1])]
    elif node.op == "call_function" and computes and not editor.nodes_in(node.args):
        value = node.target(*node.args)
    else:
        return False

    def replaced(argument: Any) -> Any:
        return torch.fx.node.map_arg(argument, lambda each: value if each is node else each)

    for user in list(node.users):
        user.args, user.kwargs = replaced(user.args), replaced(user.kwargs)
    editor.graph.erase_node(node)
    return True


def masked_assignment(editor: GraphEditor, node: "Node") -> bool:
    """``x[mask] = value`` with one value: choose it where the mask is set."""
    import torch

    if operator_name(node) != "index_put" or len(node.args) > 3 or node.kwargs:
        return False
    x, indices, value = node.args
    if not isinstance(indices, list | tuple) or len(indices) != 1 or not editor.is_node(indices[0]):
        return False
    mask: Any = indices[0]
    shape, mask_shape, one = editor.shape(x), editor.shape(mask), editor.shape(value)
    if shape is None or mask_shape is None or editor.dtype(mask) != torch.bool or one not in ((), (1,)):
        return False
    if len(mask_shape) < len(shape):
        wide = (*mask_shape, *[1] * (len(shape) - len(mask_shape)))
        mask = editor.insert(node, torch.ops.aten.reshape.default, (mask, list(wide)), wide)
    where = editor.insert(node, torch.ops.aten.where.self, (mask, value, x), node)
    return editor.replace(node, where)


def without_branches(module: "GraphModule") -> "GraphModule":
    """The graph with both sides of each ``torch.cond`` in line, and a choice between their results.

    Both sides are free of side effects, as torch.export demands, so that computing both is exact.
    """
    import torch

    graph = torch.fx.Graph()
    root = torch.nn.Module()
    known: dict[Node, Any] = {}
    _copy(module, graph, root, known, "")
    return torch.fx.GraphModule(root, graph)


def has_branches(module: "GraphModule") -> bool:
    """Whether a graph contains ``torch.cond``."""
    return any(_is_branch(node) for node in module.graph.nodes)


def _is_branch(node: "Node") -> bool:
    import torch

    return node.target is torch.ops.higher_order.cond


def _copy(module: Any, graph: "Graph", root: Any, known: "dict[Node, Any]", prefix: str) -> Any:
    """Copy the nodes of a graph to another one; its inputs are already known. Returns what it outputs."""
    import torch
    from torch.utils import _pytree

    for node in module.graph.nodes:
        if node.op == "placeholder" and node in known:
            continue
        if node.op == "output" and prefix:
            return [known[leaf] for leaf in _pytree.tree_leaves(node.args[0])]
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(module)
            if isinstance(value, torch.nn.Module):
                continue  # a side of a condition, copied where it is used
            name = f"{prefix}{node.target}".replace(".", "_")
            root.register_buffer(name, value, persistent=True)
            known[node] = graph.get_attr(name)
        elif _is_branch(node):
            condition, *sides = node.args[:3]
            results = []
            for side in sides:
                inside: Any = operator.attrgetter(side.target)(module)
                places = [each for each in inside.graph.nodes if each.op == "placeholder"]
                given = dict(zip(places, (known[operand] for operand in node.args[3]), strict=True))
                results.append(_copy(inside, graph, root, given, f"{prefix}{side.target}_"))
            known[node] = [
                graph.call_function(torch.ops.aten.where.self, (known[condition], yes, no))
                for yes, no in zip(*results, strict=True)
            ]
        elif operator_name(node) == "getitem" and isinstance(known.get(node.args[0]), list):
            known[node] = known[node.args[0]][node.args[1]]
        elif node.op != "call_module":
            known[node] = graph.node_copy(node, lambda old: known[old])
    return None
