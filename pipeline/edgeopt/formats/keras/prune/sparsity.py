"""Zeros in the weights of a Keras 3 model: the smallest go, one by one or so many of every few."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.files.archive import Kept, weight_name
from edgeopt.formats.keras.graph.layers import graph_of, weighted
from edgeopt.formats.keras.prune.selection import matching

Weights = NDArray[np.float32]

KERNELS = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "Dense"), (0, -2)),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), (0, -1)),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), (1, -2)),
}
"""Layers with a kernel that is worth thinning out: which of its weights, and its axis of input channels.

Depthwise kernels stay dense: they have few weights, and every one of them is the whole view of a channel.
"""


class Kernel(NamedTuple):
    """One kernel that may be thinned out."""

    layer: Any
    path: str
    place: int
    """Which of the layer's weights it is."""
    axis: int
    """Of the input channels."""

    @property
    def name(self) -> str:
        return weight_name(self.path, self.place)

    @property
    def values(self) -> Weights:
        return np.asarray(self.layer.weights[self.place], np.float32)


def kernels(network: Any, name: str) -> list[Kernel]:
    """The kernels of a model that may be thinned out, in the order in which they work.

    Raises:
        StageError: there are none.
    """
    found = [
        Kernel(call.layer, call.path, *KERNELS[call.kind])
        for call in weighted(graph_of(network, name))
        if call.kind in KERNELS
    ]
    if not found:
        raise StageError(
            f"{name} has no convolution or dense layer whose weights could be thinned out or shared",
            fix=f"the layers that can are {', '.join(sorted(KERNELS))}",
        )
    return found


def chosen(found: Sequence[Kernel], keep: Sequence[str]) -> list[Kernel]:
    """The kernels that no pattern of ``keep`` matches.

    Raises:
        StageError: a pattern matches none, or all are kept.
    """
    kept = matching(keep, [kernel.path for kernel in found], "keep")
    rest = [kernel for kernel in found if kernel.path not in kept]
    if not rest:
        raise StageError("keep: every layer is kept, so nothing is left to do", fix="keep fewer layers")
    return rest


def smallest_zeroed(values: Weights, share: float) -> Weights:
    """The array without the ``share`` of its values that are the smallest by magnitude."""
    count = round(share * values.size)
    flat = values.ravel().copy()
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0
    return flat.reshape(values.shape)


def thin_out(found: Sequence[Kernel], share: float, layers: Mapping[str, float]) -> Kept:
    """Set the smallest ``share`` of every kernel to zero, in place (Zhu & Gupta 2017, arXiv:1710.01878).

    Raises:
        StageError: a pattern matches no layer, or a layer would lose all its weights.
    """
    names = matching(layers, [kernel.path for kernel in found], "layers")
    sparse = {}
    for kernel in found:
        asked = layers[names[kernel.path]] if kernel.path in names else share
        before = kernel.values
        if round(asked * before.size) >= before.size:
            raise StageError(
                f"a sparsity of {asked:g} would remove all {before.size} weights of layer {kernel.path!r}",
                fix=f"ask for less, or give the layer its own share: layers: {{{kernel.path}: 0.5}}",
            )
        if asked:
            sparse[kernel.name] = _set(kernel, smallest_zeroed(before, asked))
    return Kept(sparse=sparse)


def thin_out_pattern(found: Sequence[Kernel], n: int, m: int) -> tuple[Kept, list[str]]:
    """Keep the ``n`` largest of every ``m`` weights along the input channels, in place.

    Mishra et al. 2021 (arXiv:2104.08378). Layers whose input channels do not divide by ``m`` stay dense;
    their paths are returned.

    Raises:
        StageError: no layer can have the pattern.
    """
    sparse, dense = {}, []
    for kernel in found:
        values = kernel.values
        if values.shape[kernel.axis] % m:
            dense.append(kernel.path)
            continue
        sparse[kernel.name] = _set(kernel, largest_of(values, kernel.axis, n, m))
    if not sparse:
        raise StageError(
            f"n_m [{n}, {m}]: no layer has a number of input channels that divides by {m}",
            fix="use 'weights' instead",
        )
    return Kept(sparse=sparse), dense


def largest_of(values: Weights, axis: int, n: int, m: int) -> Weights:
    """The array with only the ``n`` largest of every ``m`` values along ``axis``."""
    moved = np.moveaxis(values, axis, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, m).copy()
    small = np.argsort(np.abs(blocks), axis=-1, kind="stable")[..., : m - n]
    np.put_along_axis(blocks, small, 0, axis=-1)
    return np.ascontiguousarray(np.moveaxis(blocks.reshape(moved.shape), -1, axis))


def _set(kernel: Kernel, values: Weights) -> float:
    """Write a kernel back; the share of zeros it has now."""
    kernel.layer.weights[kernel.place].assign(values)
    return float(np.mean(values == 0))


def kept_weights(network: Any, name: str, kept: Kept) -> Iterator[tuple[str, Any]]:
    """The variables that a record names."""
    named = set(kept.sparse) | set(kept.clustered)
    for call in weighted(graph_of(network, name)):
        for index, variable in enumerate(call.layer.weights):
            if weight_name(call.path, index) in named:
                yield weight_name(call.path, index), variable
