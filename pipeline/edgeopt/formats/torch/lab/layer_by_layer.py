"""Evaluation of a graph layer by layer, in parallel with a copy whose layers are modified on the way.

Each layer is visited once, after all preceding layers were modified. Values are released after their last
use. Memory grows with the number of samples, which is limited by drawing a fixed number from the data.
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
"""Memory limit for the values of all samples, in bytes."""


class LayerSamples(NamedTuple):
    """Inputs and target outputs of a layer, one tensor per sample."""

    inputs: "list[torch.Tensor]"
    """Inputs in the modified copy."""
    outputs: "list[torch.Tensor]"
    """Outputs in the original graph."""


Change: TypeAlias = "Callable[[Layer, LayerSamples], tuple[torch.Tensor, torch.Tensor]]"
"""Callback that returns the weight and bias of a layer in the modified copy."""


def draw(
    inputs: Iterable[tuple[Array, ...]], specs: Sequence[TensorSpec], count: int
) -> "list[tuple[torch.Tensor, ...]]":
    """Draw at peak ``count`` samples with uniform probability and a fixed seed.

    Reservoir sampling (Vitter 1985, algorithm R): the data is read once and never kept as a whole.

    Raises:
        StageError: there are no samples, or one contains non-finite values or has the wrong shape.
    """
    import torch

    generator = random.Random(0)
    drawn: list[tuple[Any, ...]] = []
    for number, values in enumerate(inputs):
        for spec, value in zip(specs, values, strict=True):
            if not np.isfinite(value).all():
                raise StageError(
                    f"calibration sample {number} contains NaN or infinite values",
                    fix="remove the sample, or check the preprocessing",
                )
            if value.shape != spec.shape:
                raise StageError(
                    f"calibration sample {number} has the shape {list(value.shape)}, "
                    f"but input {spec.name!r} takes {list(spec.shape)}",
                    fix="check the data's layout in 'preprocessing'",
                )
        place = number if number < count else generator.randrange(number + 1)
        # The slice assignment appends while the reservoir is not full, and replaces afterwards.
        if place < count:
            drawn[place : place + 1] = [tuple(torch.from_numpy(np.ascontiguousarray(v)) for v in values)]
    if not drawn:
        raise StageError(
            "the calibration data is empty", fix="provide at least one sample, preferably 100 or more"
        )
    return drawn


def bytes_per_sample(graph: "GraphModule") -> int:
    """Peak memory for the values of one sample, in both copies of the graph."""
    pending_readers: Counter[Any] = Counter()
    sizes: dict[Any, int] = {}
    peak = 0
    for node in graph.graph.nodes:
        if node.op in ("call_function", "placeholder"):
            sizes[node] = _bytes(node)
            pending_readers[node] = len(node.users)
        peak = max(peak, sum(sizes.values()))
        for source in node.all_input_nodes:
            pending_readers[source] -= 1
            if not pending_readers[source]:
                sizes.pop(source, None)
    # Both copies, which share values only ahead of the first modified layer.
    return 2 * peak


def _bytes(node: Any) -> int:
    meta = node.meta.get("tensor_meta")
    tensors = [meta] if hasattr(meta, "shape") else list(meta or ())
    return sum(int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in tensors)


def fitting(graph: "GraphModule", count: int) -> int:
    """Number of samples up to ``count`` that fit into ``MEMORY``."""
    return max(1, min(count, MEMORY // max(1, bytes_per_sample(graph))))


def visit_layers(graph: "GraphModule", samples: "Sequence[tuple[torch.Tensor, ...]]", change: Change) -> None:
    """Call ``change`` for every layer, in order of execution.

    ``change`` may write to the graph: the values of the original are computed with the weights from before
    the call.

    Args:
        graph: a graph in the plain form.
        samples: inputs of batch 1.
        change: returns the weight and bias of the layer in the modified copy.
    """
    import torch

    known = {layer.node: layer for layer in layers(graph)}
    constants = {
        node: graph.get_buffer(str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"
    }
    pending = {node: len(node.users) for node in graph.graph.nodes}
    before: dict[Any, list[Any]] = {}
    after: dict[Any, list[Any]] = {}
    places = iter(range(len(samples[0])))
    with torch.no_grad():
        for node in list(graph.graph.nodes):
            # Before the callback, which may add a bias and with it an input that was not counted.
            sources = node.all_input_nodes
            if node.op == "placeholder":
                place = next(places)
                before[node] = after[node] = [sample[place] for sample in samples]
            elif node in known:
                layer = known[node]
                weight, bias = layer.weight(graph), layer.bias(graph)
                source = node.args[0]
                before[node] = [layer.apply(x, weight, bias) for x in before[source]]
                weight, bias = change(layer, LayerSamples(after[source], before[node]))
                after[node] = [layer.apply(x, weight, bias) for x in after[source]]
            elif node.op == "call_function":
                before[node] = _call_node(node, before, constants, len(samples))
                # Ahead of the first modified layer both copies are equal, and are computed once.
                same = all(after.get(n) is before.get(n) for n in sources)
                after[node] = before[node] if same else _call_node(node, after, constants, len(samples))
            for source in sources:
                pending[source] -= 1
                if not pending[source]:
                    before.pop(source, None)
                    after.pop(source, None)


def _call_node(node: Any, values: dict[Any, list[Any]], constants: dict[Any, Any], count: int) -> list[Any]:
    import torch

    def run_sample(index: int) -> Any:
        def look(source: Any) -> Any:
            return constants[source] if source in constants else values[source][index]

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), look)
        return node.target(*args, **kwargs)

    return [run_sample(index) for index in range(count)]
