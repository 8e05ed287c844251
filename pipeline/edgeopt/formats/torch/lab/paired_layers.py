"""Layer-wise comparison of exported programs: a float one in the plain form, and the same quantized by pt2e.

A quantized program computes in float between quantize and dequantize operators, so torch runs both node by
node. Integer arithmetic is introduced later, when a backend lowers the program.
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
CONVERSIONS = (
    *(*QUANTIZERS, "dequantize_per_tensor", "dequantize_affine"),
    *("dequantize_per_channel", "quantize_per_channel", "choose_qparams"),
)


class TorchPair:
    """A float and a quantized program, with their matching nodes.

    Raises:
        StageError: a program cannot be read.
    """

    def __init__(self, reference: Model, quantized: Model) -> None:
        self.float_graph, _ = torch_program.plain_graph(reference)
        self.int_graph: GraphModule = torch_program.read(quantized.path).module(check_guards=False)
        pairs = _match_nodes(self.float_graph, self.int_graph)
        output_names = {node.name for node in self.float_graph.graph.output_node().all_input_nodes}
        # Layers are compared where the quantized program puts a value on a grid, and at the outputs. With
        # weights only quantized there is no such place: all nodes are compared.
        has_quantizers = any(_quantizer(q) is not None for _, q in pairs)
        self.nodes = {
            f.name: q
            for f, q in pairs
            if _quantizer(q) is not None
            or f.name in output_names
            or (not has_quantizers and f.op != "placeholder")
        }
        self.outputs = [node.name for node in self.float_graph.graph.output_node().all_input_nodes]
        floats = {f.name: f for f, _ in pairs}
        called = {layer.node: layer.name for layer in quantizable(self.float_graph)}
        self.layers = [self._layer(floats[key], q, called) for key, q in self.nodes.items()]
        matched = {q.name for q in self.nodes.values()}
        self.unmatched = [
            node.name
            for node in self.int_graph.graph.nodes
            if operator_name(node) in WEIGHTED and not matched & {node.name, *(u.name for u in node.users)}
        ]

    def _layer(self, f: "Node", q: "Node", called: dict[str, str]) -> Layer:
        # A layer is named after its convolution, not after the activation that follows it.
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
        """Keys of the nearest compared nodes that a node depends on."""
        sources, queue = [], list(node.all_input_nodes)
        while queue:
            source = queue.pop(0)
            if source.name in self.nodes:
                sources.append(source.name)
            else:
                queue += source.all_input_nodes
        return list(dict.fromkeys(sources))

    def reference(self, inputs: Sequence[Array]) -> Values:
        return self._run(self.float_graph, inputs, {name: name for name in self.nodes})

    def quantized(self, inputs: Sequence[Array], *, written: bool = False) -> Values | None:
        if written:
            return None
        outputs = self._run(self.int_graph, inputs, self._keys)
        return {key: self._snap(key, value) for key, value in outputs.items()}

    def each(self, values: Values) -> Each:
        inputs = [values[node.name] for node in self._placeholders]
        outputs = self._run(self.int_graph, inputs, self._keys, replacements=values)
        return Each(
            self._run(self.float_graph, inputs, {name: name for name in self.nodes}, replacements=values),
            {key: self._snap(key, value) for key, value in outputs.items()},
            None,
        )

    def disturbed(self, inputs: Sequence[Array], key: str, error: Array) -> Values:
        values = self._run(self.float_graph, inputs, {n: n for n in self.outputs}, errors={key: error})
        return {name: values[name] for name in self.outputs}

    @cached_property
    def _placeholders(self) -> "list[Node]":
        return [node for node in self.float_graph.graph.nodes if node.op == "placeholder"]

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {q.name: key for key, q in self.nodes.items()}

    @cached_property
    def _grids(self) -> dict[str, Grid | None]:
        return {layer.key: layer.grid for layer in self.layers}

    def _snap(self, key: str, values: Array) -> Array:
        # The graph yields a layer's value before its quantize node; the device stores it rounded.
        grid = self._grids.get(key)
        return values if grid is None else grid.snap(values)

    def _run(
        self,
        graph: "GraphModule",
        inputs: Sequence[Array],
        keys: dict[str, str],
        *,
        replacements: Values | None = None,
        errors: Values | None = None,
    ) -> dict[str, Array]:
        """Values of the nodes in ``keys``, by key.

        With ``replacements``, readers of these nodes get those values instead: every layer runs by itself.
        With ``errors``, an error is added to the value of a node, and propagates.
        """
        import torch

        outputs: dict[str, Array] = {}

        class Recorder(torch.fx.Interpreter):
            def run_node(self, n: "Node") -> Any:
                value = super().run_node(n)
                key = keys.get(n.name, n.name)
                if errors is not None and key in errors:
                    value = value + torch.from_numpy(np.asarray(errors[key])).to(value.dtype)
                if n.name in keys or n.op == "placeholder":
                    outputs[key] = value.float().numpy() if value.is_floating_point() else value.numpy()
                if replacements is not None and n.name in keys:
                    return torch.from_numpy(np.asarray(replacements[key])).to(value.dtype)
                return value

        with torch.no_grad(), torch_engine.quiet(), torch_engine.one_thread():
            Recorder(graph).run(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs))
        return outputs


def _is_auxiliary(node: "Node") -> bool:
    """Whether a node is a constant, or converts between float and quantized values."""
    return node.op == "get_attr" or any(name in str(node.target) for name in CONVERSIONS)


def _match_nodes(one: "GraphModule", other: "GraphModule") -> "list[tuple[Node, Node]]":
    """Corresponding nodes of both graphs, in order of execution."""
    nodes = [
        [node for node in graph.graph.nodes if node.op != "output" and not _is_auxiliary(node)]
        for graph in (one, other)
    ]
    kinds = [[node.op if node.op == "placeholder" else str(node.target) for node in each] for each in nodes]
    return [(nodes[0][a], nodes[1][b]) for a, b in in_step(*kinds)]


def _quantizer(node: "Node") -> "Node | None":
    """The quantize node that reads a value, if any."""
    users = [user for user in node.users if any(name in str(user.target) for name in QUANTIZERS)]
    # "dequantize_affine" contains "quantize_affine".
    quantizers = [user for user in users if "dequantize" not in str(user.target)]
    return quantizers[0] if quantizers else None


def _grid(quantizer: "Node | None") -> Grid | None:
    """Grid of a quantize node; None if it is dynamic, with parameters computed for every sample."""
    if quantizer is None or len(quantizer.args) < 5:
        return None
    _, scale, zero_point, low, high = quantizer.args[:5]
    if not isinstance(scale, float) or not all(isinstance(n, int) for n in (zero_point, low, high)):
        return None
    return Grid((low - zero_point) * scale, (high - zero_point) * scale, scale)


def _weighted(node: "Node") -> "Node | None":
    """The convolution or linear layer that produces a node's value, directly or before an activation."""
    while operator_name(node) not in WEIGHTED:
        if operator_name(node) not in ACTIVATIONS:
            return None
        node = node.all_input_nodes[0]
    return node


def _weights(graph: "GraphModule", node: "Node") -> Weights | None:
    """The quantized weights of a convolution or linear layer; None if they stay in float."""
    import torch

    dequantize = node.args[1]
    if not isinstance(dequantize, torch.fx.Node) or "dequantize_per" not in str(dequantize.target):
        return None

    def value(argument: Any) -> Array:
        if isinstance(argument, torch.fx.Node):
            argument = _attribute(graph, str(argument.target))
        return np.asarray(argument)

    stored, scale, zero = (value(argument) for argument in dequantize.args[:3])
    axis = 1 if "transpose" in operator_name(node) else 0
    return Weights.of(stored, scale, zero, axis, 1 - axis)


def _attribute(graph: Any, target: str) -> Any:
    for name in target.split("."):
        graph = getattr(graph, name)
    return graph.detach().numpy()
