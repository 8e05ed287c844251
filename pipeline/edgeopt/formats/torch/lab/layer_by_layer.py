"""A graph run on many samples at once, layer by layer, beside a copy of it whose layers are being changed.

Each layer is met once, with everything before it as it will be. Only values that are still needed are kept,
so memory grows with the samples that take part, and these are a fixed number drawn from any amount of
data.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.torch.graph.layers import Layer, layers
from edgeopt.model import Array, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

MEMORY = 1 << 30
"""Bytes that the values of all samples may take together."""


class Seen(NamedTuple):
    """What a layer sees of every sample, and what it gives in the unchanged model."""

    inputs: "list[torch.Tensor]"
    """With every layer before it changed."""
    outputs: "list[torch.Tensor]"
    """Of the model as it was."""


Change: TypeAlias = "Callable[[Layer, Seen], tuple[torch.Tensor, torch.Tensor]]"
"""Gives the weight and bias that the copy goes on with."""


def draw(
    inputs: Iterable[tuple[Array, ...]], specs: Sequence[TensorSpec], count: int
) -> "list[tuple[torch.Tensor, ...]]":
    """At most ``count`` samples, every one of the data as likely as another, the same ones each time.

    Reservoir sampling (Vitter 1985, algorithm R): the data are read once and never held.

    Raises:
        StageError: there are no samples, or one is not finite or of another shape than the model takes.
    """
    import torch

    choice = random.Random(0)
    drawn: list[tuple[Any, ...]] = []
    for number, values in enumerate(inputs):
        for spec, value in zip(specs, values, strict=True):
            if not np.isfinite(value).all():
                raise StageError(
                    f"calibration sample {number} holds NaN or infinite values",
                    fix="remove the sample, or check the preprocessing",
                )
            if value.shape != spec.shape:
                raise StageError(
                    f"calibration sample {number} has the shape {list(value.shape)}, "
                    f"input {spec.name!r} takes {list(spec.shape)}",
                    fix="check the data's layout in 'preprocessing'",
                )
        place = number if number < count else choice.randrange(number + 1)
        if place < count:
            drawn[place : place + 1] = [tuple(torch.from_numpy(np.ascontiguousarray(v)) for v in values)]
    if not drawn:
        raise StageError("the calibration data is empty", fix="give at least one sample, better 100 or more")
    return drawn


def bytes_per_sample(graph: "GraphModule") -> int:
    """The most that the values of one sample take at one time, in both copies of the graph."""
    waiting: Counter[Any] = Counter()
    sizes: dict[Any, int] = {}
    most = 0
    for node in graph.graph.nodes:
        if node.op in ("call_function", "placeholder"):
            sizes[node] = _bytes(node)
            waiting[node] = len(node.users)
        most = max(most, sum(sizes.values()))
        for source in node.all_input_nodes:
            waiting[source] -= 1
            if not waiting[source]:
                sizes.pop(source, None)
    return 2 * most


def _bytes(node: Any) -> int:
    meta = node.meta.get("tensor_meta")
    tensors = [meta] if hasattr(meta, "shape") else list(meta or ())
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in tensors)


def fitting(graph: "GraphModule", count: int) -> int:
    """How many of ``count`` samples fit into memory."""
    return max(1, min(count, MEMORY // max(1, bytes_per_sample(graph))))


def walk(graph: "GraphModule", samples: "Sequence[tuple[torch.Tensor, ...]]", change: Change) -> None:
    """Meet every layer in the order in which they run. The graph itself stays as it is.

    ``change`` may write into the graph: the unchanged copy goes on with the weights from before.
    """
    import torch

    known = {layer.node: layer for layer in layers(graph)}
    constants = {
        node: graph.get_buffer(str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"
    }
    left = {node: len(node.users) for node in graph.graph.nodes}
    before: dict[Any, list[Any]] = {}
    after: dict[Any, list[Any]] = {}
    places = iter(range(len(samples[0])))
    with torch.no_grad():
        for node in list(graph.graph.nodes):
            sources = node.all_input_nodes  # as they are now: a layer may be given its first bias
            if node.op == "placeholder":
                place = next(places)
                before[node] = after[node] = [sample[place] for sample in samples]
            elif node in known:
                layer = known[node]
                weight, bias = layer.weight(graph), layer.bias(graph)
                source = node.args[0]
                before[node] = [layer.apply(x, weight, bias) for x in before[source]]
                weight, bias = change(layer, Seen(after[source], before[node]))
                after[node] = [layer.apply(x, weight, bias) for x in after[source]]
            elif node.op == "call_function":
                before[node] = _called(node, before, constants, len(samples))
                same = all(after.get(n) is before.get(n) for n in sources)
                after[node] = before[node] if same else _called(node, after, constants, len(samples))
            for source in sources:
                left[source] -= 1
                if not left[source]:
                    before.pop(source, None)
                    after.pop(source, None)


def _called(node: Any, values: dict[Any, list[Any]], constants: dict[Any, Any], count: int) -> list[Any]:
    import torch

    def of_sample(index: int) -> Any:
        def look(source: Any) -> Any:
            return constants[source] if source in constants else values[source][index]

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), look)
        return node.target(*args, **kwargs)

    return [of_sample(index) for index in range(count)]
