"""A graph under revision: what rewriting rules look at and change."""

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

VERSION = re.compile(r"_v\d+$")
"""What is appended to the name of a constant whose name is taken while rewriting goes on."""


class Draft:
    """A copy of a graph in which every constant is a buffer, and the shape of every value is known.

    A rule that inserts a node with ``new`` gives its shape there; ``measure`` finds all shapes anew.
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
        # A fresh root: hooks, guards and pytree code of the exported module stay behind.
        self.root = torch.nn.Module()
        graph = torch.fx.Graph()
        known: dict[Node, Node] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                value = operator.attrgetter(node.target)(module)
                known[node] = self._constant(graph, value, constants.get(value.data_ptr(), node.target))
            elif node.op == "call_module":
                continue  # the guards on inputs; shapes are fixed here
            elif node.op == "output":
                leaves = [leaf for leaf in _pytree.tree_leaves(node.args) if leaf is not None]
                results = tuple(known[leaf] for leaf in leaves)
                graph.output(results[0] if len(results) == 1 else results)
            else:
                known[node] = graph.node_copy(node, lambda old: known[old])
                known[node].meta = {}
        self.module = torch.fx.GraphModule(self.root, graph)
        self.root = self.module
        self.graph = self.module.graph

    # looking

    def shape(self, node: object) -> Shape | None:
        """Shape of a value; none for what is not one tensor."""
        if self.is_constant(node):
            return tuple(self.value(node).shape)
        meta = getattr(node, "meta", {}).get("tensor_meta")
        shape = getattr(meta, "shape", None)
        return None if shape is None else tuple(shape)

    def rank(self, node: object) -> int:
        """Number of axes of a value; 0 where that is unknown."""
        return len(self.shape(node) or ())

    def dtype(self, node: "Node") -> Any:
        """Data type of a value."""
        return self.value(node).dtype if self.is_constant(node) else node.meta["tensor_meta"].dtype

    def is_value(self, node: object) -> bool:
        """Whether an argument is computed or a constant tensor, and not a plain number."""
        import torch

        return isinstance(node, torch.fx.Node)

    def is_constant(self, node: object) -> bool:
        """Whether an argument is a constant tensor."""
        return self.is_value(node) and node.op == "get_attr"  # type: ignore[attr-defined]

    def value(self, node: Any) -> "torch.Tensor":
        """The tensor of a constant."""
        tensor: torch.Tensor = getattr(self.module, str(node.target))
        return tensor

    def values_in(self, args: object) -> "list[Node]":
        """The nodes among arguments, however deep in lists."""
        from torch.utils import _pytree

        return [leaf for leaf in _pytree.tree_leaves(args) if self.is_value(leaf)]

    def layer_before(self, node: "Node", source: Any) -> "Node | None":
        """The convolution or linear layer with constant weights that only ``node`` reads."""
        if operator_name(source) not in LAYERS or len(source.users) != 1 or source.kwargs:
            return None
        if len(source.args) < 3 or not self.is_constant(source.args[1]):
            return None
        if source.args[2] is not None and not self.is_constant(source.args[2]):
            return None
        found: Node = source
        return found

    # changing

    def new(self, before: "Node", target: Any, args: tuple[Any, ...], shape_of: "Node | Shape") -> "Node":
        """Insert a call before a node; its shape is that of another node or given."""
        import torch

        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        if isinstance(shape_of, tuple):
            like = next(a for a in self.values_in(args) if not self.is_constant(a))
            node.meta["tensor_meta"] = like.meta["tensor_meta"]._replace(shape=torch.Size(shape_of))
        else:
            node.meta["tensor_meta"] = shape_of.meta["tensor_meta"]
        return node

    def store(self, before: "Node", value: "torch.Tensor", hint: str) -> "Node":
        """Insert a constant before a node, named after ``hint``."""
        with self.graph.inserting_before(before):
            return self._constant(self.graph, value, hint)

    def replace(self, node: "Node", by: "Node") -> bool:
        """Put one node in the place of another; returns true."""
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)
        return True

    def _constant(self, graph: Any, value: "torch.Tensor", hint: str) -> "Node":
        stem = VERSION.sub("", re.sub(r"\W", "_", hint))
        if stem[:1].isdigit() or not stem:
            stem = f"p_{stem}"
        self.count += 1
        name = stem if not hasattr(self.root, stem) else f"{stem}_v{self.count}"
        self.root.register_buffer(name, value.detach().clone().contiguous())
        return graph.get_attr(name)

    # between rounds

    def clean(self) -> None:
        """Remove what nothing reads."""
        self.graph.eliminate_dead_code()
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        for name in [name for name, _ in self.module.named_buffers() if name not in used]:
            delattr(self.module, name)
        self.graph.lint()

    def measure(self) -> None:
        """Find the shape of every value."""
        from torch.fx.passes.shape_prop import ShapeProp

        self.module.recompile()
        ShapeProp(self.module).propagate(*self.inputs)

    def finish(self, names: Sequence[str]) -> "GraphModule":
        """The module, its inputs called by ``names``, its constants without the count of rewrites."""
        self._name_inputs(names)
        self._name_constants()
        self.module.recompile()
        return self.module.eval()

    def _name_inputs(self, names: Sequence[str]) -> None:
        wanted = [re.sub(r"\W", "_", name) for name in names]
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        fit = len(set(wanted)) == len(placeholders) and all(
            name.isidentifier() and not keyword.iskeyword(name) and name not in ("self", "torch")
            for name in wanted
        )
        for index, node in enumerate(placeholders):
            node.target = node._rename(wanted[index] if fit else f"input_{index}") or node.name

    def _name_constants(self) -> None:
        nodes = [node for node in self.graph.nodes if node.op == "get_attr"]
        taken = {str(node.target) for node in self.graph.nodes if node.op == "placeholder"}
        values = dict(self.module.named_buffers())
        renamed: dict[str, str] = {}
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
