"""Weight pruning of a Keras 3 model by magnitude: unstructured, or N of every M weights (N:M)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.files.archive import Kept, weight_name
from edgeopt.formats.keras.graph.layers import graph_of, weighted
from edgeopt.formats.layer_names import matching

Weights = NDArray[np.float32]

KERNELS = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "Dense"), (0, -2)),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), (0, -1)),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), (1, -2)),
}
"""Layers with a kernel worth pruning: the index of the weight, and its axis of input channels.

Depthwise kernels stay dense: they have few weights, and each channel has no other weights.
"""


class Kernel(NamedTuple):
    """One kernel that can be pruned."""

    layer: Any
    path: str
    place: int
    """Its index among the layer's weights."""
    axis: int
    """The axis of the input channels."""

    @property
    def name(self) -> str:
        return weight_name(self.path, self.place)

    @property
    def values(self) -> Weights:
        return np.asarray(self.layer.weights[self.place], np.float32)


def kernels(network: Any, name: str) -> list[Kernel]:
    """The kernels of a model that can be pruned, in execution order.

    Raises:
        StageError: the model has none.
    """
    result = [
        Kernel(call.layer, call.path, *KERNELS[call.kind])
        for call in weighted(graph_of(network, name))
        if call.kind in KERNELS
    ]
    if not result:
        raise StageError(
            f"{name} has no convolution or dense layer whose weights could be pruned or clustered",
            fix=f"supported layers: {', '.join(sorted(KERNELS))}",
        )
    return result


def chosen(candidates: Sequence[Kernel], keep: Sequence[str]) -> list[Kernel]:
    """The kernels that no pattern of ``keep`` matches.

    Raises:
        StageError: a pattern matches no layer, or all layers are kept.
    """
    kept = matching(keep, [kernel.path for kernel in candidates], "keep")
    rest = [kernel for kernel in candidates if kernel.path not in kept]
    if not rest:
        raise StageError("'keep' matches every layer: nothing to do", fix="keep fewer layers")
    return rest


def smallest_zeroed(values: Weights, share: float) -> Weights:
    """The array with its smallest values by magnitude, a fraction of ``share``, set to zero."""
    count = round(share * values.size)
    flat = values.ravel().copy()
    # By rank, not by a threshold: equal magnitudes would make the number of zeros inexact.
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0
    return flat.reshape(values.shape)


def prune_by_magnitude(selected: Sequence[Kernel], share: float, layers: Mapping[str, float]) -> Kept:
    """Set the smallest ``share`` of every kernel to zero, in place (Zhu & Gupta 2017, arXiv:1710.01878).

    Raises:
        StageError: a pattern matches no layer, or a layer would lose all its weights.
    """
    patterns = matching(layers, [kernel.path for kernel in selected], "layers")
    sparse = {}
    for kernel in selected:
        layer_share = layers[patterns[kernel.path]] if kernel.path in patterns else share
        before = kernel.values
        if round(layer_share * before.size) >= before.size:
            raise StageError(
                f"a sparsity of {layer_share:g} would remove all {before.size} weights of layer "
                f"{kernel.path!r}",
                fix=f"use a lower share, or set one for the layer: layers: {{{kernel.path}: 0.5}}",
            )
        if layer_share:
            sparse[kernel.name] = _set(kernel, smallest_zeroed(before, layer_share))
    return Kept(sparse=sparse)


def prune_n_m(selected: Sequence[Kernel], n: int, m: int) -> tuple[Kept, list[str]]:
    """Keep the ``n`` largest of every ``m`` weights along the input channels, in place.

    N:M sparsity: Mishra et al. 2021 (arXiv:2104.08378). Layers whose number of input channels is not a
    multiple of ``m`` stay dense; their paths are returned.

    Raises:
        StageError: no layer supports the pattern.
    """
    sparse, dense = {}, []
    for kernel in selected:
        values = kernel.values
        # Sparse kernels of the runtimes have no partial block.
        if values.shape[kernel.axis] % m:
            dense.append(kernel.path)
            continue
        sparse[kernel.name] = _set(kernel, largest_of(values, kernel.axis, n, m))
    if not sparse:
        raise StageError(
            f"n_m [{n}, {m}]: no layer has a number of input channels that is a multiple of {m}",
            fix="use 'weights' instead",
        )
    return Kept(sparse=sparse), dense


def largest_of(values: Weights, axis: int, n: int, m: int) -> Weights:
    """The array with all but the ``n`` largest of every ``m`` values along ``axis`` set to zero."""
    moved = np.moveaxis(values, axis, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, m).copy()
    # By rank: exactly m - n zeros per block, also for equal magnitudes.
    small = np.argsort(np.abs(blocks), axis=-1, kind="stable")[..., : m - n]
    np.put_along_axis(blocks, small, 0, axis=-1)
    return np.ascontiguousarray(np.moveaxis(blocks.reshape(moved.shape), -1, axis))


def _set(kernel: Kernel, values: Weights) -> float:
    """Store the values of a kernel and return their fraction of zeros."""
    kernel.layer.weights[kernel.place].assign(values)
    return float(np.mean(values == 0))


def kept_weights(network: Any, name: str, kept: Kept) -> Iterator[tuple[str, Any]]:
    """The variables named in a record of constraints."""
    named = set(kept.sparse) | set(kept.clustered)
    for call in weighted(graph_of(network, name)):
        for index, variable in enumerate(call.layer.weights):
            if weight_name(call.path, index) in named:
                yield weight_name(call.path, index), variable
