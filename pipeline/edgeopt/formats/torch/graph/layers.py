"""Convolutions and linear layers of a plain graph: their weights, and what they see of each sample."""

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.graph_editor import VERSION
from edgeopt.formats.torch.graph.operators import LAYERS, WEIGHTED, operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

ROOT = "model_"
"""Before the names of all constants of a program: the module that is exported is wrapped under that name."""
INSIDE = "___"
"""Between the name of a Keras model and that of a layer in it; names of constants have no slashes."""
WEIGHT = re.compile(r"(?P<layer>.*?)_?(weight|kernel(_(?P<call>\d+))?)")


class Layer(NamedTuple):
    """One convolution or linear layer whose weight and bias are constants that nothing else reads."""

    node: Any
    name: str

    @property
    def is_linear(self) -> bool:
        return operator_name(self.node) == "linear"

    @property
    def axis(self) -> int:
        """The axis of the channels in what goes in and comes out."""
        return -1 if self.is_linear else 1

    @property
    def groups(self) -> int:
        return 1 if self.is_linear else int(self.node.args[6])

    def weight(self, graph: "GraphModule") -> "torch.Tensor":
        """Shape ``[outputs, inputs / groups, *kernel]``."""
        return graph.get_buffer(str(self.node.args[1].target))

    def bias(self, graph: "GraphModule") -> "torch.Tensor":
        """Shape ``[outputs]``; zeros where the layer has none."""
        node = self.node.args[2]
        if node is None:
            return self.weight(graph).new_zeros(self.weight(graph).shape[0])
        return graph.get_buffer(str(node.target))

    def set_weight(self, graph: "GraphModule", value: "torch.Tensor") -> None:
        setattr(graph, str(self.node.args[1].target), value.to(self.weight(graph).dtype).contiguous())

    def set_bias(self, graph: "GraphModule", value: "torch.Tensor") -> None:
        """Give the layer another bias, or its first."""
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
        """What the layer gives with another weight and bias."""
        result: torch.Tensor = self.node.target(x, weight, bias, *self.node.args[3:])
        return result

    def mean(self, output: "torch.Tensor") -> "torch.Tensor":
        """Mean of an output over everything but its channels, in float64: shape ``[outputs]``."""
        channels = output.double().movedim(self.axis, 0)
        return channels.reshape(channels.shape[0], -1).mean(1)

    def patches(self, x: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
        """The inputs of every output position: ``[groups, positions, inputs / groups * kernel]``.

        An output of group g at a position is the product of that row with the flattened weight.
        """
        import torch

        if self.is_linear:
            return x.reshape(1, -1, x.shape[-1])
        rank = weight.dim() - 2
        stride, padding, dilation = (_each(self.node.args[place], rank) for place in (3, 4, 5))
        amounts = [amount for size in reversed(padding) for amount in (size, size)]
        windows = torch.nn.functional.pad(x, amounts)
        for axis in range(rank):
            reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
            windows = windows.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
        # [batch, channels, *positions, *kernel], channels of one group next to each other
        groups = self.groups
        batch, channels = windows.shape[:2]
        apart = windows.reshape(batch, groups, channels // groups, *windows.shape[2:])
        order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
        return apart.permute(order).reshape(groups, -1, weight[0].numel())


def _each(value: Any, rank: int) -> list[int]:
    values = [int(item) for item in value]
    return values * rank if len(values) == 1 else values


def layers(graph: "GraphModule") -> list[Layer]:
    """The layers in the order in which they run."""
    readers = _readers(graph)
    return [Layer(node, layer_name(node)) for node in graph.graph.nodes if _is_layer(node, readers)]


def others(graph: "GraphModule") -> list[str]:
    """Names of what holds weights and is not among ``layers``: shared or computed weights, other kinds."""
    readers = _readers(graph)
    return [
        f"{layer_name(node)} ({operator_name(node)})"
        for node in graph.graph.nodes
        if operator_name(node) in WEIGHTED and not _is_layer(node, readers)
    ]


def layer_name(node: Any) -> str:
    """The name of a layer in the source model, as far as its weight still tells, such as ``block1_conv2``.

    Of a Keras layer: ``head/conv2d``, and ``head/conv2d:2`` where it is called again.
    """
    weight = node.args[1]
    if weight.op != "get_attr":
        return str(node.name)
    name = VERSION.sub("", str(weight.target)).removeprefix(ROOT)
    return name if WEIGHT.fullmatch(name) is None else layer_of(name) or str(node.name)


def layer_of(constant: str) -> str:
    """The layer that a constant is the weight of, by the constant's name; empty if that does not tell."""
    found = WEIGHT.fullmatch(VERSION.sub("", constant).removeprefix(ROOT))
    if found is None or not found["layer"]:
        return ""
    return found["layer"].replace(INSIDE, "/") + (f":{found['call']}" if found["call"] else "")


def weight_name(layer: str, weight: str) -> str:
    """What to call a weight of a Keras layer, such as ``head/conv2d``; ``layer_of`` finds that again."""
    kind = "kernel" if weight.endswith("kernel") else weight
    return f"{ROOT}{layer.replace('/', INSIDE)}_{kind}"


def _readers(graph: "GraphModule") -> Counter[str]:
    """How many nodes read each constant."""
    constants = [node for node in graph.graph.nodes if node.op == "get_attr"]
    return Counter(str(constant.target) for constant in constants for _ in constant.users)


def _is_layer(node: Any, readers: Counter[str]) -> bool:
    if operator_name(node) not in LAYERS or node.kwargs or len(node.args) < 3:
        return False
    if any(isinstance(argument, str) for argument in node.args):
        return False  # a padding that is a word: the plain form has numbers
    constants = [constant for constant in node.args[1:3] if constant is not None]
    return all(constant.op == "get_attr" and readers[str(constant.target)] == 1 for constant in constants)
