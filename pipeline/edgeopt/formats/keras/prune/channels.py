"""Which channels of a Keras 3 model belong together, so that they can only be removed together.

Every channel of every tensor carries the number of the place that it was made in. A convolution makes new
numbers; batch normalization, activations and pooling pass them on; Flatten repeats them, Concatenate puts
them side by side; Add ties the numbers of its inputs, position by position (union-find). What a layer does
with the weights along a numbered axis is noted on the way, so that removing a number removes the right
slices everywhere. A layer that is not known here keeps every channel that it touches: the channels of its
inputs are frozen, with its name as the reason.

Channels lie on the last axis; a layer with ``channels_first`` freezes what it touches.
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
"""For one weight array: the axes that channels lie on."""

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
"""Layers and bare operations that treat every channel alike and have no weights."""
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
"""Activations whose value on one channel depends on that channel alone: softmax and the like do not."""


class Producer(NamedTuple):
    """A layer whose number of output channels can be set, and the setting that says it."""

    path: str
    setting: str
    atoms: Atoms
    weight: int
    """Which of its weights makes the channels, and along which axis."""
    axis: int


class Bundle(NamedTuple):
    """Channels that are made by the same layers: one number each, to be kept or removed by itself.

    ``channels`` are the tied numbers. ``frozen`` says why none of them may go; empty if they may.
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
        """For every layer with weights along channels: by the weight's index, its axes."""
        self.settings: dict[str, tuple[str, Atoms]] = {}
        """Settings that follow the number of channels: ``filters``, ``units``, shapes."""
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
        for path, number in graph.entries:
            self.settings[path] = ("batch_shape", self._tensors[number])
        for number in graph.outputs:
            self._freeze(self._tensors[number], "the model's output")

    def root(self, atoms: Atoms) -> Atoms:
        """The number that stands for each channel and all that are tied to it."""
        return np.array([self._find(int(atom)) for atom in atoms], np.int64)

    def bundles(self) -> list[Bundle]:
        """All channels that layers make, grouped by the layers that make them, in the model's order."""
        makers: dict[int, list[str]] = {}
        for producer in self.producers.values():
            for root in dict.fromkeys(self.root(producer.atoms).tolist()):
                makers.setdefault(root, []).append(producer.path)
        users: dict[int, list[str]] = {}
        for path, axes in self.weights.items():
            # The last axes of a layer with an output setting are its own; a consumer is no member.
            made = self.producers[path].atoms if path in self.producers else None
            for atoms in (made,) if made is not None else (a for w in axes.values() for a in w.values()):
                for root in dict.fromkeys(self.root(atoms).tolist()):
                    users.setdefault(root, []).append(path)
        grouped: dict[tuple[str, ...], list[int]] = {}
        for root, paths in makers.items():
            grouped.setdefault(tuple(paths), []).append(root)
        frozen = {self._find(atom): reason for atom, reason in self._frozen.items()}
        return [
            Bundle(
                paths,
                tuple(dict.fromkeys(path for root in roots for path in users.get(root, ()))),
                np.array(roots, np.int64),
                next((frozen[root] for root in roots if root in frozen), ""),
            )
            for paths, roots in grouped.items()
        ]

    def _follow(self, call: Call) -> None:
        taken = [self._tensors[number] for number in call.inputs]
        known = self._handler(call)
        if known is None or len(call.outputs) != 1 or not taken:
            for atoms in taken:
                self._freeze(atoms, f"{call.kind} {call.path!r}")
            for number in call.outputs:
                shape = self.graph.shapes[number]
                self._tensors[number] = self._new(
                    shape[-1] if len(shape) > 1 else 0, f"{call.kind} {call.path!r}"
                )
            return
        self._tensors[call.outputs[0]] = known(call, taken)

    def _handler(self, call: Call) -> Callable[[Call, list[Atoms]], Atoms] | None:
        layer, kind = call.layer, call.kind
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            return None
        if kind in CONVOLUTIONS | TRANSPOSED:
            return self._convolution if getattr(layer, "groups", 1) == 1 else None
        if kind in SEPARABLE:
            return self._separable
        if kind in DEPTHWISE:
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
            last = layer.axis in (-1, len(call.node.outputs[0].shape) - 1)
            return _side_by_side if last else self._tie
        if kind in {"Flatten", "Reshape"}:
            return self._reshape if hasattr(layer, "compute_output_spec") else None
        return None

    def _convolution(self, call: Call, taken: list[Atoms]) -> Atoms:
        rank = len(call.layer.kernel.shape)
        back = call.kind in TRANSPOSED
        setting = "units" if call.kind == "Dense" else "filters"
        made = self._made(call, setting, 0, rank - 2 if back else rank - 1)
        axes = {rank - 1: taken[0], rank - 2: made} if back else {rank - 2: taken[0], rank - 1: made}
        self._bind(call.path, [axes, {0: made}])
        return made

    def _separable(self, call: Call, taken: list[Atoms]) -> Atoms:
        rank = len(call.layer.pointwise_kernel.shape)
        wide = np.repeat(taken[0], call.layer.depth_multiplier)
        made = self._made(call, "filters", 1, rank - 1)
        self._bind(call.path, [{rank - 2: taken[0]}, {rank - 2: wide, rank - 1: made}, {0: made}])
        return made

    def _depthwise(self, call: Call, taken: list[Atoms]) -> Atoms:
        rank = len(call.layer.kernel.shape)
        wide = np.repeat(taken[0], call.layer.depth_multiplier)
        self._bind(call.path, [{rank - 2: taken[0]}, {0: wide}])
        return wide

    def _normalization(self, call: Call, taken: list[Atoms]) -> Atoms:
        self._bind(call.path, [{0: taken[0]}] * len(call.layer.weights))
        if maker := self._made_by.get(call.inputs[0]):
            self.normalized[maker] = call.path
        return taken[0]

    def _slopes(self, call: Call, taken: list[Atoms]) -> Atoms:
        shape = tuple(call.layer.alpha.shape)
        if shape[-1] == len(taken[0]) and shape[-1] > 1:
            self._bind(call.path, [{len(shape) - 1: taken[0]}])
        return taken[0]

    def _reshape(self, call: Call, taken: list[Atoms]) -> Atoms:
        before, after = self.graph.shapes[call.inputs[0]][1:], self.graph.shapes[call.outputs[0]][1:]
        atoms = taken[0]
        if after and before and after[-1] == before[-1]:
            made = atoms  # channels stay on the last axis, which varies fastest
        elif len(after) == 1 and None not in before:
            made = np.tile(atoms, math.prod(size or 1 for size in before[:-1]))
        else:
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
            else:  # one channel that is spread over all others
                self._freeze(atoms, f"{call.kind} {call.path!r}")
        return widest

    def _made(self, call: Call, setting: str, weight: int, axis: int) -> Atoms:
        """New numbers for the channels that a layer makes; a second use makes the same ones."""
        if call.path not in self.producers:
            count = int(call.layer.weights[weight].shape[axis])
            reason = "" if _elementwise(call.layer) else f"the activation of {call.kind} {call.path!r}"
            atoms = self._new(count, reason)
            self.producers[call.path] = Producer(call.path, setting, atoms, weight, axis)
            self.settings[call.path] = (setting, atoms)
        self._made_by[call.outputs[0]] = call.path
        return self.producers[call.path].atoms

    def _bind(self, path: str, axes: list[Axes]) -> None:
        """Note what lies along the axes of a layer's weights; a second use of the layer ties both."""
        bound = self.weights.setdefault(path, {})
        for index, atoms_of in enumerate(axes):
            for axis, atoms in atoms_of.items():
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
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _union(self, first: Atoms, second: Atoms) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            a, b = self._find(one), self._find(other)
            self._parent[max(a, b)] = min(a, b)


def _pass(call: Call, taken: list[Atoms]) -> Atoms:
    return taken[0]


def _side_by_side(call: Call, taken: list[Atoms]) -> Atoms:
    return np.concatenate(taken)


def _elementwise(layer: Any) -> bool:
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") in ELEMENTWISE


def _plain_arguments(call: Call) -> bool:
    """Whether a call takes nothing but tensors of the graph and numbers: arrays would have to be cut too."""
    arguments = call.node.arguments
    values = [*arguments.args, *arguments.kwargs.values()]
    flat = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return all(not getattr(value, "shape", ()) or hasattr(value, "_keras_history") for value in flat)
