"""The layers of a Keras 3 model in the order in which they run, models inside models taken apart.

Sequential and functional models alike become one list of calls between numbered tensors, which is what
pruning, counting and rebuilding work on.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from edgeopt.errors import StageError


class Call(NamedTuple):
    """One use of a layer, or of a bare operation such as ``x + y``."""

    layer: Any
    path: str
    """Names of the models around it and its own, joined by '/': unique, and the same for each use."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: Any

    @property
    def kind(self) -> str:
        return type(self.layer).__name__


class Graph(NamedTuple):
    """All calls, first to last; tensors are numbers, ``shapes`` are theirs with the batch axis."""

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    entries: tuple[tuple[str, int], ...]
    """Paths of the input layers of inner models, and the tensors that they are given."""


def graph_of(network: Any, name: str) -> Graph:
    """Walk a Keras 3 model; ``name`` is how messages call it.

    Raises:
        StageError: for a subclassed model, whose layers cannot be followed.
    """
    shapes: list[tuple[int | None, ...]] = []
    calls: list[Call] = []
    entries: list[tuple[str, int]] = []

    def fresh(tensor: Any) -> int:
        shapes.append(tuple(tensor.shape))
        return len(shapes) - 1

    def expand(model: Any, prefix: str, given: list[int] | None) -> list[int]:
        inner = _functional(model, prefix + model.name if given else name)
        numbers = given or [fresh(tensor) for tensor in inner.inputs]
        known = {id(tensor): number for tensor, number in zip(inner.inputs, numbers, strict=True)}
        if given:
            entries.extend(
                (prefix + str(tensor._keras_history.operation.name), number)
                for tensor, number in zip(inner.inputs, numbers, strict=True)
            )
        for depth in sorted(inner._nodes_by_depth, reverse=True):
            for node in inner._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                layer = node.operation
                taken = [known[id(tensor)] for tensor in node.input_tensors]
                if is_model(layer):
                    made = expand(layer, f"{prefix}{layer.name}/", taken)
                else:
                    made = [fresh(tensor) for tensor in node.outputs]
                    calls.append(Call(layer, prefix + str(layer.name), tuple(taken), tuple(made), node))
                known |= {id(tensor): number for tensor, number in zip(node.outputs, made, strict=True)}
        return [known[id(tensor)] for tensor in inner.outputs]

    outputs = expand(network, "", None)
    inputs = range(len(_functional(network, name).inputs))
    return Graph(tuple(calls), tuple(inputs), tuple(outputs), tuple(shapes), tuple(entries))


def is_model(layer: Any) -> bool:
    """Whether a layer is a Sequential or functional model itself."""
    import keras

    return isinstance(layer, keras.Model) and (
        isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")
    )


def _functional(model: Any, name: str) -> Any:
    import keras

    inner = model._functional if isinstance(model, keras.Sequential) else model
    if not hasattr(inner, "_nodes_by_depth"):
        raise StageError(
            f"{name} is a subclassed or unbuilt model, whose layers cannot be followed",
            fix="build it as a Sequential or functional model with known input shapes",
        )
    return inner


def weighted(graph: Graph) -> Iterator[Call]:
    """The first use of every layer that has weights."""
    seen: set[str] = set()
    for call in graph.calls:
        if call.path not in seen and getattr(call.layer, "weights", None):
            seen.add(call.path)
            yield call


class Costs(NamedTuple):
    """What one inference costs: multiply-accumulate operations, and all parameters."""

    macs: int
    parameters: int


def costs(network: Any, graph: Graph) -> Costs:
    """MACs of convolutions and dense layers for one sample (free dimensions count 1), and parameters."""
    return Costs(sum(_macs(call, graph) for call in graph.calls), int(network.count_params()))


def _macs(call: Call, graph: Graph) -> int:
    """Every kernel value works once per position: of the output, or of the input where that is spread out."""
    layer = call.layer
    transposed = "Transpose" in call.kind
    at = graph.shapes[call.inputs[0] if transposed else call.outputs[0]]
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    positions = math.prod(size or 1 for size in (at[2:] if first else at[1:-1]))
    kernels = [getattr(layer, name, None) for name in ("depthwise_kernel", "pointwise_kernel")]
    if all(kernel is None for kernel in kernels):
        kernels = [getattr(layer, "kernel", None)]
    return positions * sum(int(math.prod(kernel.shape)) for kernel in kernels if kernel is not None)
