"""Convolutions and linear layers of a graph in the plain form: their weights, inputs and names."""

import operator
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.graph_editor import VERSION
from edgeopt.formats.torch.graph.operators import LAYERS, WEIGHTED, operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

ROOT = "model_"
"""Prefix of all constants of a program: modules are exported as a submodule of that name."""
INSIDE = "___"
"""Separator between a Keras model and a layer in it; names of constants cannot contain slashes."""
WEIGHT = re.compile(r"(?P<layer>.*?)_?(weight|kernel(_(?P<call>\d+))?)")


class Layer(NamedTuple):
    """A convolution or linear layer whose weight and bias are constants without other readers."""

    node: Any
    name: str

    @property
    def is_linear(self) -> bool:
        return operator_name(self.node) == "linear"

    @property
    def axis(self) -> int:
        """Channel axis of inputs and outputs."""
        return -1 if self.is_linear else 1

    @property
    def groups(self) -> int:
        return 1 if self.is_linear else int(self.node.args[6])

    def weight(self, graph: "GraphModule") -> "torch.Tensor":
        """Shape ``[outputs, inputs / groups, *kernel]``."""
        return graph.get_buffer(str(self.node.args[1].target))

    def bias(self, graph: "GraphModule") -> "torch.Tensor":
        """Shape ``[outputs]``; zeros if the layer has no bias."""
        node = self.node.args[2]
        if node is None:
            return self.weight(graph).new_zeros(self.weight(graph).shape[0])
        return graph.get_buffer(str(node.target))

    def set_weight(self, graph: "GraphModule", value: "torch.Tensor") -> None:
        setattr(graph, str(self.node.args[1].target), value.to(self.weight(graph).dtype).contiguous())

    def set_bias(self, graph: "GraphModule", value: "torch.Tensor") -> None:
        """Replace the layer's bias, or add one."""
        value = value.to(self.weight(graph).dtype).contiguous()
        old = self.node.args[2]
        if old is not None:
            setattr(graph, str(old.target), value)
            return
        name = re.sub(r"_?(weight|kernel)$", "", str(self.node.args[1].target)) + "_bias"
        while hasattr(graph, name):
            name += "_"
        graph.register_buffer(name, value)
        with graph.graph.inserting_before(self.node):
            constant = graph.graph.get_attr(name)
        self.node.args = (*self.node.args[:2], constant, *self.node.args[3:])

    def apply(self, x: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor") -> "torch.Tensor":
        """Output of the layer for input ``x`` with the given weight and bias."""
        result: torch.Tensor = self.node.target(x, weight, bias, *self.node.args[3:])
        return result

    def mean(self, output: "torch.Tensor") -> "torch.Tensor":
        """Mean of an output over all axes except its channels, in float64: shape ``[outputs]``."""
        channels = output.double().movedim(self.axis, 0)
        return channels.reshape(channels.shape[0], -1).mean(1)

    def patches(self, x: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
        """Input patches of all output positions (im2col): ``[groups, positions, inputs / groups * kernel]``.

        An output of group g at a position is the product of its row and the flattened weight.
        """
        import torch

        if self.is_linear:
            return x.reshape(1, -1, x.shape[-1])
        rank = weight.dim() - 2
        stride, padding, dilation = (_per_axis(self.node.args[place], rank) for place in (3, 4, 5))
        amounts = [amount for size in reversed(padding) for amount in (size, size)]
        windows = torch.nn.functional.pad(x, amounts)
        for axis in range(rank):
            reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
            windows = windows.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
        # Now [batch, channels, *positions, *kernel]. The result has the features in the order of a flattened
        # weight: channels of the group, then kernel positions.
        groups = self.groups
        batch, channels = windows.shape[:2]
        grouped = windows.reshape(batch, groups, channels // groups, *windows.shape[2:])
        order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
        return grouped.permute(order).reshape(groups, -1, weight[0].numel())


def _per_axis(value: Any, rank: int) -> list[int]:
    """One value per spatial axis: ATen accepts a single value for all."""
    values = [int(item) for item in value]
    return values * rank if len(values) == 1 else values


def layers(graph: "GraphModule") -> list[Layer]:
    """All layers, in order of execution."""
    readers = _reader_counts(graph)
    return [Layer(node, layer_name(node)) for node in graph.graph.nodes if _is_layer(node, readers)]


def others(graph: "GraphModule") -> list[str]:
    """Names of weighted operators that are not among ``layers``: shared or computed weights, other kinds."""
    readers = _reader_counts(graph)
    return [
        f"{layer_name(node)} ({operator_name(node)})"
        for node in graph.graph.nodes
        if operator_name(node) in WEIGHTED and not _is_layer(node, readers)
    ]


def layer_name(node: Any) -> str:
    """Name of a layer in the source model, derived from its weight, such as ``block1_conv2``.

    A Keras layer is named ``head/conv2d``, and its second call ``head/conv2d:2``. A layer whose weight does
    not determine the name is called after its node.
    """
    weight = node.args[1]
    if weight.op != "get_attr":
        return str(node.name)
    name = VERSION.sub("", str(weight.target)).removeprefix(ROOT)
    return name if WEIGHT.fullmatch(name) is None else layer_of(name) or str(node.name)


def layer_of(constant: str) -> str:
    """Name of the layer that a constant is the weight of; empty if the constant's name does not match."""
    match = WEIGHT.fullmatch(VERSION.sub("", constant).removeprefix(ROOT))
    if match is None or not match["layer"]:
        return ""
    return match["layer"].replace(INSIDE, "/") + (f":{match['call']}" if match["call"] else "")


def weight_name(layer: str, weight: str) -> str:
    """Constant name for a weight of a Keras layer such as ``head/conv2d``; the inverse of ``layer_of``."""
    kind = "kernel" if weight.endswith("kernel") else weight
    return f"{ROOT}{layer.replace('/', INSIDE)}_{kind}"


def _reader_counts(graph: "GraphModule") -> Counter[str]:
    """Number of nodes that read each constant."""
    constants = [node for node in graph.graph.nodes if node.op == "get_attr"]
    return Counter(str(constant.target) for constant in constants for _ in constant.users)


def _is_layer(node: Any, readers: Counter[str]) -> bool:
    if operator_name(node) not in LAYERS or node.kwargs or len(node.args) < 3:
        return False
    if any(isinstance(argument, str) for argument in node.args):
        return False  # padding="same": the plain form has numbers
    # Whoever changes the weight of a layer must not change another one.
    constants = [constant for constant in node.args[1:3] if constant is not None]
    return all(constant.op == "get_attr" and readers[str(constant.target)] == 1 for constant in constants)


def separate_weights(graph: "GraphModule") -> "GraphModule":
    """Give layers that share a weight or a bias a copy each, in place: ExecuTorch changes it per layer.

    Its passes for XNNPACK add an axis to the kernel of every ``conv1d``, and its quantizer skips a layer
    whose weight or bias has been annotated. Equal constants are stored once in the file.
    """
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        layers = [user for user in node.users if operator_name(user) in WEIGHTED and node in user.args[1:3]]
        for index, layer in enumerate(layers[1:], start=1):
            name = f"{node.target.replace('.', '_')}_{index}"
            while hasattr(graph, name):
                name += "_"
            graph.register_buffer(name, operator.attrgetter(node.target)(graph).detach().clone())
            with graph.graph.inserting_before(layer):
                copy = graph.graph.get_attr(name)
            copy.meta = dict(node.meta)
            layer.update_arg(layer.args.index(node), copy)
    graph.recompile()
    return graph
