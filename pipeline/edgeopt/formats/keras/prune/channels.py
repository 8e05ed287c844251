"""Channel dependencies of a Keras 3 model: which channels can only be removed together.

Every channel of every tensor has a number that identifies where it is produced. A convolution creates new
numbers; batch normalization, activations and pooling propagate them; Flatten repeats them; Concatenate
concatenates them; Add ties the numbers of its inputs, position by position (union-find). The weight axes that
belong to numbered channels are recorded along the way, so that removing a number removes the right slices
everywhere. An unsupported layer freezes the channels of its inputs, with its name as the reason.

Channels are on the last axis; a layer with ``channels_first`` counts as unsupported.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.graph.layers import Call, Graph

Atoms: TypeAlias = NDArray[np.int64]
"""One number per channel of an axis."""
Axes: TypeAlias = dict[int, Atoms]
"""The channel axes of one weight array, with the numbers along each."""

CHANNELWISE = frozenset(
    """
    ReLU LeakyReLU ELU Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianNoise
    GaussianDropout AlphaDropout ActivityRegularization Identity
    MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D
    UpSampling1D UpSampling2D UpSampling3D
    Relu Relu6 Sigmoid Silu Tanh HardSigmoid HardSilu Elu Gelu
    """.split()
)
"""Layers and bare operations that treat every channel alike and have no weights.

The pooled or padded axes are spatial: the channels pass through unchanged.
"""
TIES = frozenset({"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"})
CONVOLUTIONS = frozenset({"Conv1D", "Conv2D", "Conv3D", "Dense"})
TRANSPOSED = frozenset({"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"})
SEPARABLE = frozenset({"SeparableConv1D", "SeparableConv2D"})
DEPTHWISE = frozenset({"DepthwiseConv1D", "DepthwiseConv2D"})
ELEMENTWISE = frozenset(
    """
    linear relu relu6 leaky_relu elu selu celu gelu silu swish mish sigmoid hard_sigmoid hard_silu hard_swish
    tanh hard_tanh tanh_shrink softplus softsign soft_shrink hard_shrink squareplus sparse_plus exponential
    log_sigmoid threshold
    """.split()
)
"""Activations that compute each channel from that channel alone, unlike softmax."""


class Producer(NamedTuple):
    """A layer with a configurable number of output channels, and the setting that configures it."""

    path: str
    setting: str
    atoms: Atoms
    weight: int
    """Index of the weight that produces the channels; ``axis`` is its axis of output channels."""
    axis: int


class Bundle(NamedTuple):
    """Channels that are produced by the same layers; each can be kept or removed independently.

    ``channels`` are the tied numbers. ``frozen`` is the reason why none may be removed; empty if they may.
    """

    producers: tuple[str, ...]
    members: tuple[str, ...]
    channels: Atoms
    frozen: str


class Channels:
    """The channel numbers of a whole model."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers: dict[str, Producer] = {}
        self.weights: dict[str, dict[int, Axes]] = {}
        """For every layer with channel axes in its weights: the axes, by weight index."""
        self.settings: dict[str, tuple[str, Atoms]] = {}
        """Settings that depend on the number of channels: ``filters``, ``units``, shapes."""
        self.normalized: dict[str, str] = {}
        """Producer to the batch normalization that directly follows it."""
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}
        self._tensors: dict[int, Atoms] = {}
        self._made_by: dict[int, str] = {}
        for number in graph.inputs:
            self._tensors[number] = self._new(graph.shapes[number][-1], "the model's input")
        for call in graph.calls:
            self._follow(call)
        # The input layer of a nested model stores a shape, and it receives pruned channels.
        for path, number in graph.entries:
            self.settings[path] = ("batch_shape", self._tensors[number])
        for number in graph.outputs:
            self._freeze(self._tensors[number], "the model's output")

    def root(self, atoms: Atoms) -> Atoms:
        """The representative number of each channel and of all channels tied to it."""
        return np.array([self._find(int(atom)) for atom in atoms], np.int64)

    def bundles(self) -> list[Bundle]:
        """All produced channels, grouped by the layers that produce them, in the order of the model."""
        producers: dict[int, list[str]] = {}
        for producer in self.producers.values():
            for root in dict.fromkeys(self.root(producer.atoms).tolist()):
                producers.setdefault(root, []).append(producer.path)
        members: dict[int, list[str]] = {}
        for path, axes in self.weights.items():
            # Patterns in 'keep' and 'layers' select by output channels: a convolution is a member by those
            # that it produces, not by those that it reads. Layers without an output setting, such as batch
            # normalization, have the same channels on both sides.
            produced = self.producers[path].atoms if path in self.producers else None
            own = (produced,) if produced is not None else (a for w in axes.values() for a in w.values())
            for atoms in own:
                for root in dict.fromkeys(self.root(atoms).tolist()):
                    members.setdefault(root, []).append(path)
        grouped: dict[tuple[str, ...], list[int]] = {}
        for root, paths in producers.items():
            grouped.setdefault(tuple(paths), []).append(root)
        # Only now: channels may have been tied after one of them was frozen.
        frozen = {self._find(atom): reason for atom, reason in self._frozen.items()}
        return [
            Bundle(
                paths,
                tuple(dict.fromkeys(path for root in roots for path in members.get(root, ()))),
                np.array(roots, np.int64),
                next((frozen[root] for root in roots if root in frozen), ""),
            )
            for paths, roots in grouped.items()
        ]

    def _follow(self, call: Call) -> None:
        inputs = [self._tensors[number] for number in call.inputs]
        handler = self._handler(call)
        if handler is None or len(call.outputs) != 1 or not inputs:
            for atoms in inputs:
                self._freeze(atoms, f"{call.kind} {call.path!r}")
            # Frozen as well: no producer is known whose setting would change their number.
            for number in call.outputs:
                shape = self.graph.shapes[number]
                self._tensors[number] = self._new(
                    shape[-1] if len(shape) > 1 else 0, f"{call.kind} {call.path!r}"
                )
            return
        self._tensors[call.outputs[0]] = handler(call, inputs)

    def _handler(self, call: Call) -> Callable[[Call, list[Atoms]], Atoms] | None:
        layer, kind = call.layer, call.kind
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            return None
        if kind in CONVOLUTIONS | TRANSPOSED:
            # Every group has to keep the same number of input channels, which union-find does not express.
            return self._convolution if getattr(layer, "groups", 1) == 1 else None
        if kind in SEPARABLE:
            return self._separable
        if kind in DEPTHWISE:
            # An activation across channels sees every channel, so none may be removed before it.
            return self._depthwise if _elementwise(layer) else None
        if kind == "BatchNormalization":
            return self._normalization if layer.axis in (-1, len(call.node.outputs[0].shape) - 1) else None
        if kind == "Activation":
            return _pass if _elementwise(layer) else None
        if kind == "PReLU":
            return self._slopes
        if kind in CHANNELWISE:
            return _pass if _plain_arguments(call) and len(call.inputs) == 1 else None
        if kind in TIES:
            return self._tie if _plain_arguments(call) else None
        if kind == "Concatenate" and hasattr(layer, "axis"):
            # Along another axis every input contributes to all channels: they must stay in step.
            on_channels = layer.axis in (-1, len(call.node.outputs[0].shape) - 1)
            return _side_by_side if on_channels else self._tie
        if kind in {"Flatten", "Reshape"}:
            return self._reshape if hasattr(layer, "compute_output_spec") else None
        return None

    def _convolution(self, call: Call, taken: list[Atoms]) -> Atoms:
        rank = len(call.layer.kernel.shape)
        # Keras stores transposed kernels as [..., output, input], all others as [..., input, output].
        transposed = call.kind in TRANSPOSED
        setting = "units" if call.kind == "Dense" else "filters"
        made = self._produced(call, setting, 0, rank - 2 if transposed else rank - 1)
        axes = {rank - 1: taken[0], rank - 2: made} if transposed else {rank - 2: taken[0], rank - 1: made}
        self._bind(call.path, [axes, {0: made}])
        return made

    def _separable(self, call: Call, taken: list[Atoms]) -> Atoms:
        rank = len(call.layer.pointwise_kernel.shape)
        # The depthwise part makes `depth_multiplier` outputs of each channel, next to each other.
        wide = np.repeat(taken[0], call.layer.depth_multiplier)
        made = self._produced(call, "filters", 1, rank - 1)
        self._bind(call.path, [{rank - 2: taken[0]}, {rank - 2: wide, rank - 1: made}, {0: made}])
        return made

    def _depthwise(self, call: Call, taken: list[Atoms]) -> Atoms:
        rank = len(call.layer.kernel.shape)
        wide = np.repeat(taken[0], call.layer.depth_multiplier)
        self._bind(call.path, [{rank - 2: taken[0]}, {0: wide}])
        return wide

    def _normalization(self, call: Call, taken: list[Atoms]) -> Atoms:
        self._bind(call.path, [{0: taken[0]}] * len(call.layer.weights))
        if producer := self._made_by.get(call.inputs[0]):
            self.normalized[producer] = call.path
        return taken[0]

    def _slopes(self, call: Call, taken: list[Atoms]) -> Atoms:
        shape = tuple(call.layer.alpha.shape)
        # A last size of 1 is a slope that all channels share (`shared_axes`).
        if shape[-1] == len(taken[0]) and shape[-1] > 1:
            self._bind(call.path, [{len(shape) - 1: taken[0]}])
        return taken[0]

    def _reshape(self, call: Call, taken: list[Atoms]) -> Atoms:
        before, after = self.graph.shapes[call.inputs[0]][1:], self.graph.shapes[call.outputs[0]][1:]
        atoms = taken[0]
        if after and before and after[-1] == before[-1]:
            made = atoms  # only the axes before the channels change, which vary more slowly
        elif len(after) == 1 and None not in before:
            # Flattened in row-major order: the channels repeat once per position.
            made = np.tile(atoms, math.prod(size or 1 for size in before[:-1]))
        else:
            # Channels mix with other axes: removing one leaves no rectangular tensor.
            reason = f"{call.kind} {call.path!r}"
            self._freeze(atoms, reason)
            return self._new(after[-1] if after else 0, reason)
        if call.kind == "Reshape":
            self.settings[call.path] = ("target_shape", made)
        return made

    def _tie(self, call: Call, taken: list[Atoms]) -> Atoms:
        widest = max(taken, key=len)
        for atoms in taken:
            if len(atoms) == len(widest):
                self._union(atoms, widest)
            else:  # broadcast: one channel is combined with all others
                self._freeze(atoms, f"{call.kind} {call.path!r}")
        return widest

    def _produced(self, call: Call, setting: str, weight: int, axis: int) -> Atoms:
        """New numbers for the channels that a layer produces; a second call returns the same ones."""
        if call.path not in self.producers:
            count = int(call.layer.weights[weight].shape[axis])
            reason = "" if _elementwise(call.layer) else f"the activation of {call.kind} {call.path!r}"
            atoms = self._new(count, reason)
            self.producers[call.path] = Producer(call.path, setting, atoms, weight, axis)
            self.settings[call.path] = (setting, atoms)
        self._made_by[call.outputs[0]] = call.path
        return self.producers[call.path].atoms

    def _bind(self, path: str, axes: list[Axes]) -> None:
        """Record the channels along the axes of a layer's weights.

        A second call of the layer uses the same weights, which ties its channels to those of the first.
        """
        bound = self.weights.setdefault(path, {})
        for index, weight_axes in enumerate(axes):
            for axis, atoms in weight_axes.items():
                before = bound.setdefault(index, {}).setdefault(axis, atoms)
                self._union(before, atoms)

    def _new(self, count: int | None, frozen: str) -> Atoms:
        first = len(self._parent)
        self._parent.extend(range(first, first + (count or 0)))
        atoms = np.arange(first, len(self._parent), dtype=np.int64)
        if frozen:
            self._freeze(atoms, frozen)
        return atoms

    def _freeze(self, atoms: Iterable[int], reason: str) -> None:
        for atom in atoms:
            self._frozen.setdefault(int(atom), reason)

    def _find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            # Path halving keeps the trees flat without recursion.
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _union(self, first: Atoms, second: Atoms) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            a, b = self._find(one), self._find(other)
            # The earliest number represents the set: the result does not depend on the order of unions.
            self._parent[max(a, b)] = min(a, b)


def _pass(call: Call, taken: list[Atoms]) -> Atoms:
    return taken[0]


def _side_by_side(call: Call, taken: list[Atoms]) -> Atoms:
    return np.concatenate(taken)


def _elementwise(layer: Any) -> bool:
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") in ELEMENTWISE


def _plain_arguments(call: Call) -> bool:
    """Whether a call has only tensors of the graph and numbers as arguments.

    A constant array would need slicing too, and it is part of the configuration, not of the weights.
    """
    arguments = call.node.arguments
    values = [*arguments.args, *arguments.kwargs.values()]
    flat = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return all(not getattr(value, "shape", ()) or hasattr(value, "_keras_history") for value in flat)
