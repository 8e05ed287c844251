"""Editing of a graph: the queries and changes that rewriting rules are made of."""

import keyword
import operator
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt.formats.torch.graph.operators import LAYERS, operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

Shape: TypeAlias = tuple[int, ...]

LINE = "edgeopt.line"
"""Key in the metadata of a node: the line of the user's code that it is from, as text."""

VERSION = re.compile(r"_v\d+$")
"""Temporary suffix of a constant whose name is already taken during rewriting."""


class GraphEditor:
    """An editable copy of a graph, with every constant as a buffer and the shape of every value known.

    A rule that inserts a node with ``insert`` provides its shape; ``infer_shapes`` recomputes all shapes.

    Args:
        module: the graph to copy; it stays unchanged.
        inputs: example inputs, which fix all shapes.
        constants: names for tensors by data pointer, where they differ from those in the module.
    """

    def __init__(
        self,
        module: "GraphModule",
        inputs: "tuple[torch.Tensor, ...]",
        constants: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        import torch
        from torch.utils import _pytree

        self.inputs = inputs
        self.count = 0
        # A new root module leaves hooks, guards and pytree code of the exported module behind.
        self.root = torch.nn.Module()
        graph = torch.fx.Graph()
        known: dict[Node, Node] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                value = operator.attrgetter(node.target)(module)
                known[node] = self._constant(graph, value, constants.get(value.data_ptr(), node.target))
            elif node.op == "call_module":
                continue  # input guards, redundant with fixed shapes
            elif node.op == "output":
                # Converters expect a flat tuple: dicts and nested outputs of forward() are flattened.
                leaves = [leaf for leaf in _pytree.tree_leaves(node.args) if leaf is not None]
                results = tuple(known[leaf] for leaf in leaves)
                graph.output(results[0] if len(results) == 1 else results)
            else:
                known[node] = graph.node_copy(node, lambda old: known[old])
                known[node].meta = _line(node)
        self.module = torch.fx.GraphModule(self.root, graph)
        self.root = self.module
        self.graph = self.module.graph

    # queries

    def shape(self, node: object) -> Shape | None:
        """Shape of a value; None if it is not a single tensor."""
        if self.is_constant(node):
            return tuple(self.value(node).shape)
        meta = getattr(node, "meta", {}).get("tensor_meta")
        shape = getattr(meta, "shape", None)
        return None if shape is None else tuple(shape)

    def rank(self, node: object) -> int:
        """Number of axes of a value; 0 if unknown."""
        return len(self.shape(node) or ())

    def dtype(self, node: "Node") -> Any:
        """Data type of a value."""
        return self.value(node).dtype if self.is_constant(node) else node.meta["tensor_meta"].dtype

    def is_node(self, node: object) -> bool:
        """Whether an argument is a node, computed or constant, rather than a Python value."""
        import torch

        return isinstance(node, torch.fx.Node)

    def is_constant(self, node: object) -> bool:
        """Whether an argument is a constant tensor."""
        return self.is_node(node) and node.op == "get_attr"  # type: ignore[attr-defined]

    def value(self, node: Any) -> "torch.Tensor":
        """The tensor of a constant."""
        tensor: torch.Tensor = getattr(self.module, str(node.target))
        return tensor

    def nodes_in(self, args: object) -> "list[Node]":
        """All nodes among arguments, including those in nested lists."""
        from torch.utils import _pytree

        return [leaf for leaf in _pytree.tree_leaves(args) if self.is_node(leaf)]

    def layer_before(self, node: "Node", source: Any) -> "Node | None":
        """``source`` if it is a convolution or linear layer with constant weights and no reader but ``node``.

        With a second reader, a change of the layer's weights would change that reader's input as well.
        """
        if operator_name(source) not in LAYERS or len(source.users) != 1 or source.kwargs:
            return None
        if len(source.args) < 3 or not self.is_constant(source.args[1]):
            return None
        if source.args[2] is not None and not self.is_constant(source.args[2]):
            return None
        layer: Node = source
        return layer

    # changes

    def insert(self, before: "Node", target: Any, args: tuple[Any, ...], shape_of: "Node | Shape") -> "Node":
        """Insert a call before a node; ``shape_of`` is its shape, or a node of the same shape."""
        import torch

        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        node.meta = _line(before)
        if isinstance(shape_of, tuple):
            # The dtype is that of the computed operand; constants have no metadata.
            like = next(a for a in self.nodes_in(args) if not self.is_constant(a))
            node.meta["tensor_meta"] = like.meta["tensor_meta"]._replace(shape=torch.Size(shape_of))
        else:
            node.meta["tensor_meta"] = shape_of.meta["tensor_meta"]
        return node

    def insert_constant(self, before: "Node", value: "torch.Tensor", hint: str) -> "Node":
        """Insert a constant before a node, named after ``hint``."""
        with self.graph.inserting_before(before):
            return self._constant(self.graph, value, hint)

    def replace(self, node: "Node", by: "Node") -> bool:
        """Replace a node by another and erase it; return True, as the result of a rule."""
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)
        return True

    def _constant(self, graph: Any, value: "torch.Tensor", hint: str) -> "Node":
        stem = VERSION.sub("", re.sub(r"\W", "_", hint))
        if stem[:1].isdigit() or not stem:
            stem = f"p_{stem}"
        self.count += 1
        # A clone: the original module, and every earlier version of this constant, stay as they are.
        name = stem if not hasattr(self.root, stem) else f"{stem}_v{self.count}"
        self.root.register_buffer(name, value.detach().clone().contiguous())
        return graph.get_attr(name)

    # between rounds

    def remove_unused(self) -> None:
        """Remove nodes and constants without readers."""
        self.graph.eliminate_dead_code()
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        for name in [name for name, _ in self.module.named_buffers() if name not in used]:
            delattr(self.module, name)
        self.graph.lint()

    def infer_shapes(self) -> None:
        """Compute the shape of every value by running the graph on the example inputs."""
        from torch.fx.passes.shape_prop import ShapeProp

        self.module.recompile()
        ShapeProp(self.module).propagate(*self.inputs)

    def finish(self, names: Sequence[str]) -> "GraphModule":
        """Return the module with its inputs renamed to ``names`` and final names for its constants."""
        self._name_inputs(names)
        self._name_constants()
        self.module.recompile()
        return self.module.eval()

    def _name_inputs(self, names: Sequence[str]) -> None:
        identifiers = [re.sub(r"\W", "_", name) for name in names]
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        # They become parameters of the generated forward(), which uses ``self`` and ``torch`` itself.
        valid = len(set(identifiers)) == len(placeholders) and all(
            name.isidentifier() and not keyword.iskeyword(name) and name not in ("self", "torch")
            for name in identifiers
        )
        for index, node in enumerate(placeholders):
            node.target = node._rename(identifiers[index] if valid else f"input_{index}") or node.name

    def _name_constants(self) -> None:
        nodes = [node for node in self.graph.nodes if node.op == "get_attr"]
        taken = {str(node.target) for node in self.graph.nodes if node.op == "placeholder"}
        values = dict(self.module.named_buffers())
        renamed: dict[str, str] = {}
        # In the order of the nodes, so that the same graph always produces the same names.
        for old in dict.fromkeys(str(node.target) for node in nodes):
            stem = VERSION.sub("", old)
            new, count = stem, 1
            while new in taken:
                count += 1
                new = f"{stem}_{count}"
            taken.add(new)
            renamed[old] = new
            delattr(self.module, old)
        for old, new in renamed.items():
            self.module.register_buffer(new, values[old])
        for node in nodes:
            node.target = renamed[str(node.target)]


def _line(node: "Node") -> dict[str, Any]:
    return {LINE: node.meta[LINE]} if LINE in node.meta else {}
