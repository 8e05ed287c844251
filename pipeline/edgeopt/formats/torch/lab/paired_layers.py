"""Exported programs side by side: a float one in the plain form, and the same quantized by pt2e.

A quantized program computes in float between quantize and dequantize operators, so both are run node by
node in torch; the backend that carries them out in integers comes later.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.quantize.overrides import quantizable
from edgeopt.model import Array, Model
from edgeopt.plugin.layer_pair import INPUT, Each, Grid, Layer, Values, Weights, in_step

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

QUANTIZERS = ("quantize_per_tensor", "quantize_affine")
ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh", "clamp"})
BETWEEN_TYPES = (
    *(*QUANTIZERS, "dequantize_per_tensor", "dequantize_affine"),
    *("dequantize_per_channel", "quantize_per_channel", "choose_qparams"),
)


class TorchPair:
    """Both programs as graphs."""

    def __init__(self, reference: Model, quantized: Model) -> None:
        self.float_graph, _ = torch_program.plain_graph(reference)
        self.int_graph: GraphModule = torch_program.read(quantized.path).module(check_guards=False)
        pairs = _matched(self.float_graph, self.int_graph)
        ends = {node.name for node in self.float_graph.graph.output_node().all_input_nodes}
        quantized_at_all = any(_quantizer(q) is not None for _, q in pairs)
        self.nodes = {
            f.name: q
            for f, q in pairs
            if _quantizer(q) is not None or f.name in ends or (not quantized_at_all and f.op != "placeholder")
        }
        self.output = self.float_graph.graph.output_node().all_input_nodes[0].name
        floats = {f.name: f for f, _ in pairs}
        called = {layer.node: layer.name for layer in quantizable(self.float_graph)}
        self.layers = [self._layer(floats[key], q, called) for key, q in self.nodes.items()]
        there = {q.name for q in self.nodes.values()}
        self.unmatched = [
            node.name
            for node in self.int_graph.graph.nodes
            if operator_name(node) in WEIGHTED and not there & {node.name, *(u.name for u in node.users)}
        ]

    def _layer(self, f: "Node", q: "Node", called: dict[str, str]) -> Layer:
        # A layer is called after its convolution, not after the activation behind it.
        weighted = _weighted(q)
        convolution = _weighted(f)
        return Layer(
            f.name,
            f.name if convolution is None else called.get(convolution.name, convolution.name),
            INPUT if f.op == "placeholder" else operator_name(weighted or f),
            _grid(_quantizer(q)),
            None if weighted is None else _weights(self.int_graph, weighted),
            tuple(self._sources(f)),
            channels_last=False,
        )

    def _sources(self, node: "Node") -> list[str]:
        found, waiting = [], list(node.all_input_nodes)
        while waiting:
            source = waiting.pop(0)
            if source.name in self.nodes:
                found.append(source.name)
            else:
                waiting += source.all_input_nodes
        return list(dict.fromkeys(found))

    def reference(self, inputs: Sequence[Array]) -> Values:
        return self._run(self.float_graph, inputs, {name: name for name in self.nodes})

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        if written:
            return None
        found = self._run(self.int_graph, inputs, self._keys)
        return {key: self._snapped(key, value) for key, value in found.items()}

    def each(self, values: Values) -> Each:
        inputs = [values[node.name] for node in self._placeholders]
        found = self._run(self.int_graph, inputs, self._keys, given=values)
        return Each(
            self._run(self.float_graph, inputs, {name: name for name in self.nodes}, given=values),
            {key: self._snapped(key, value) for key, value in found.items()},
            None,
        )

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Array:
        wanted = {self.output: self.output}
        return self._run(self.float_graph, inputs, wanted, errors={key: error})[self.output]

    @cached_property
    def _placeholders(self) -> "list[Node]":
        return [node for node in self.float_graph.graph.nodes if node.op == "placeholder"]

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {q.name: key for key, q in self.nodes.items()}

    @cached_property
    def _grids(self) -> dict[str, Grid | None]:
        return {layer.key: layer.grid for layer in self.layers}

    def _snapped(self, key: str, values: Array) -> Array:
        grid = self._grids.get(key)
        return values if grid is None else grid.snap(values)

    def _run(
        self,
        graph: "GraphModule",
        inputs: Sequence[Array],
        keys: dict[str, str],
        *,
        given: Values | None = None,
        errors: Values | None = None,
    ) -> dict[str, Array]:
        """What the nodes in ``keys`` give, by key; ``given`` is what their readers get instead."""
        import torch

        found: dict[str, Array] = {}

        class Walk(torch.fx.Interpreter):
            def run_node(self, n: "Node") -> Any:
                value = super().run_node(n)
                key = keys.get(n.name, n.name)
                if errors is not None and key in errors:
                    value = value + torch.from_numpy(np.asarray(errors[key])).to(value.dtype)
                if n.name in keys or n.op == "placeholder":
                    found[key] = value.float().numpy() if value.is_floating_point() else value.numpy()
                if given is not None and n.name in keys:
                    return torch.from_numpy(np.asarray(given[key])).to(value.dtype)
                return value

        with torch.no_grad(), torch_engine.quiet(), torch_engine.one_thread():
            Walk(graph).run(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs))
        return found


def _between_types(node: "Node") -> bool:
    return node.op == "get_attr" or any(name in str(node.target) for name in BETWEEN_TYPES)


def _matched(one: "GraphModule", other: "GraphModule") -> "list[tuple[Node, Node]]":
    """Nodes of both graphs that do the same, in the order of execution."""
    nodes = [
        [node for node in graph.graph.nodes if node.op != "output" and not _between_types(node)]
        for graph in (one, other)
    ]
    kinds = [[node.op if node.op == "placeholder" else str(node.target) for node in each] for each in nodes]
    return [(nodes[0][a], nodes[1][b]) for a, b in in_step(*kinds)]


def _quantizer(node: "Node") -> "Node | None":
    users = [user for user in node.users if any(name in str(user.target) for name in QUANTIZERS)]
    plain = [user for user in users if "dequantize" not in str(user.target)]
    return plain[0] if plain else None


def _grid(quantizer: "Node | None") -> Grid | None:
    """The grid that a node's output is put on; None for one that is found anew for every sample."""
    if quantizer is None or len(quantizer.args) < 5:
        return None
    _, scale, zero_point, low, high = quantizer.args[:5]
    if not isinstance(scale, float) or not all(isinstance(n, int) for n in (zero_point, low, high)):
        return None
    return Grid((low - zero_point) * scale, (high - zero_point) * scale, scale)


def _weighted(node: "Node") -> "Node | None":
    """The convolution or linear layer that gives a node's value, through its activation."""
    while operator_name(node) not in WEIGHTED:
        if operator_name(node) not in ACTIVATIONS:
            return None
        node = node.all_input_nodes[0]
    return node


def _weights(graph: "GraphModule", node: "Node") -> Weights | None:
    """The quantized weights of a convolution or linear layer."""
    import torch

    back = node.args[1]
    if not isinstance(back, torch.fx.Node) or "dequantize_per" not in str(back.target):
        return None

    def value(argument: Any) -> Array:
        if isinstance(argument, torch.fx.Node):
            argument = _attribute(graph, str(argument.target))
        return np.asarray(argument)

    stored, scale, zero = (value(argument) for argument in back.args[:3])
    axis = 1 if "transpose" in operator_name(node) else 0
    return Weights.of(stored, scale, zero, axis, 1 - axis)


def _attribute(graph: Any, target: str) -> Any:
    for name in target.split("."):
        graph = getattr(graph, name)
    return graph.detach().numpy()
