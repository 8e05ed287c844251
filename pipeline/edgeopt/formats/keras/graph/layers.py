"""The layers of a Keras 3 model in execution order, with nested models flattened.

Sequential and functional models become the same structure: a list of calls between numbered tensors.
Pruning, cost counting and rebuilding work on that list.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from edgeopt.errors import StageError


class Call(NamedTuple):
    """One call of a layer, or of a bare operation such as ``x + y``."""

    layer: Any
    path: str
    """Names of the enclosing models and of the layer, joined by '/': unique, the same for every call."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: Any

    @property
    def kind(self) -> str:
        return type(self.layer).__name__


class Graph(NamedTuple):
    """All calls in execution order; tensors are indices into ``shapes``, which include the batch axis."""

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    entries: tuple[tuple[str, int], ...]
    """Paths of the input layers of nested models, and the tensors that they receive."""


def graph_of(network: Any, name: str) -> Graph:
    """Flatten a Keras 3 model; ``name`` identifies it in messages.

    Raises:
        StageError: the model is subclassed, so its layers cannot be traced.
    """
    shapes: list[tuple[int | None, ...]] = []
    calls: list[Call] = []
    entries: list[tuple[str, int]] = []

    def fresh(tensor: Any) -> int:
        shapes.append(tuple(tensor.shape))
        return len(shapes) - 1

    def expand(model: Any, prefix: str, arguments: list[int] | None) -> list[int]:
        """Append the calls of one model; ``arguments`` are its inputs, None for the outermost model."""
        inner = _functional(model, prefix + model.name if arguments else name)
        numbers = arguments or [fresh(tensor) for tensor in inner.inputs]
        # A nested model keeps the symbolic tensors of its own definition: `known` is local to each call of
        # it, so that two calls of one model do not share tensor numbers.
        known = {id(tensor): number for tensor, number in zip(inner.inputs, numbers, strict=True)}
        if arguments:
            entries.extend(
                (prefix + str(tensor._keras_history.operation.name), number)
                for tensor, number in zip(inner.inputs, numbers, strict=True)
            )
        # Keras counts depth from the outputs, so execution order is by decreasing depth.
        for depth in sorted(inner._nodes_by_depth, reverse=True):
            for node in inner._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                layer = node.operation
                inputs = [known[id(tensor)] for tensor in node.input_tensors]
                if is_model(layer):
                    outputs = expand(layer, f"{prefix}{layer.name}/", inputs)
                else:
                    outputs = [fresh(tensor) for tensor in node.outputs]
                    calls.append(Call(layer, prefix + str(layer.name), tuple(inputs), tuple(outputs), node))
                known |= {id(tensor): number for tensor, number in zip(node.outputs, outputs, strict=True)}
        return [known[id(tensor)] for tensor in inner.outputs]

    outputs = expand(network, "", None)
    inputs = range(len(_functional(network, name).inputs))
    return Graph(tuple(calls), tuple(inputs), tuple(outputs), tuple(shapes), tuple(entries))


def is_model(layer: Any) -> bool:
    """Whether a layer is itself a Sequential or functional model."""
    import keras

    return isinstance(layer, keras.Model) and (
        isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")
    )


def _functional(model: Any, name: str) -> Any:
    import keras

    # A Sequential model builds a functional one internally; it is None until the input shape is known.
    inner = model._functional if isinstance(model, keras.Sequential) else model
    if not hasattr(inner, "_nodes_by_depth"):
        raise StageError(
            f"{name} is a subclassed or unbuilt model: its layers cannot be traced",
            fix="build it as a Sequential or functional model with known input shapes",
        )
    return inner


def weighted(graph: Graph) -> Iterator[Call]:
    """The first call of every layer that has weights."""
    seen: set[str] = set()
    for call in graph.calls:
        if call.path not in seen and getattr(call.layer, "weights", None):
            seen.add(call.path)
            yield call


class Costs(NamedTuple):
    """Multiply-accumulate operations of one inference, and the number of parameters."""

    macs: int
    parameters: int


def costs(network: Any, graph: Graph) -> Costs:
    """MACs of convolutions and dense layers for one sample (open dimensions count as 1), and parameters."""
    return Costs(sum(_macs(call, graph) for call in graph.calls), int(network.count_params()))


def _macs(call: Call, graph: Graph) -> int:
    layer = call.layer
    # Every kernel value is used once per output position; a transposed convolution scatters its input
    # instead, so every kernel value is used once per input position.
    transposed = "Transpose" in call.kind
    shape = graph.shapes[call.inputs[0] if transposed else call.outputs[0]]
    channels_first = getattr(layer, "data_format", "channels_last") == "channels_first"
    positions = math.prod(size or 1 for size in (shape[2:] if channels_first else shape[1:-1]))
    # Separable convolutions name their two kernels; all other layers have `kernel`.
    kernels = [getattr(layer, name, None) for name in ("depthwise_kernel", "pointwise_kernel")]
    if all(kernel is None for kernel in kernels):
        kernels = [getattr(layer, "kernel", None)]
    return positions * sum(int(math.prod(kernel.shape)) for kernel in kernels if kernel is not None)
