"""Few different values in every kernel of a Keras 3 model, so that it compresses."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.files.archive import Kept
from edgeopt.formats.keras.prune.selection import matching
from edgeopt.formats.keras.prune.sparsity import Kernel, Weights

ROUNDS = 100
BINS = 256


def share_values(
    found: Sequence[Kernel], clusters: int, layers: Mapping[str, int], kept: Kept
) -> tuple[Kept, float]:
    """Give every kernel at most ``clusters`` different values, in place (Han et al. 2016, arXiv:1510.00149).

    Zeros that pruning has left stay, as one of the values.

    Returns:
        The record of what was done, and the share of the weights' energy that was lost.

    Raises:
        StageError: a pattern matches no layer.
    """
    names = matching(layers, [kernel.path for kernel in found], "layers")
    clustered: dict[str, int] = {}
    lost = energy = 0.0
    for kernel in found:
        before = kernel.values
        count = layers[names[kernel.path]] if kernel.path in names else clusters
        after = few_values(before, count, keep_zeros=kernel.name in kept.sparse)
        kernel.layer.weights[kernel.place].assign(after)
        clustered[kernel.name] = len(np.unique(after))
        lost += float(((after - before).astype(np.float64) ** 2).sum())
        energy += float((before.astype(np.float64) ** 2).sum())
    return Kept(clustered=clustered), lost / (energy or 1.0)


def few_values(values: Weights, count: int, *, keep_zeros: bool) -> Weights:
    """The array with each value replaced by the nearest of at most ``count`` (k-means in one dimension).

    Lloyd's rounds, from values as dense as the cube root of the weights' density: where a fine quantizer
    would have them (Panter & Dite 1951).
    """
    flat = values.ravel().astype(np.float64)
    free = np.flatnonzero(flat) if keep_zeros else np.arange(flat.size)
    count -= int(free.size < flat.size)
    if np.unique(flat[free]).size > count:
        flat[free] = _nearest(flat[free], count)
    return flat.reshape(values.shape).astype(np.float32)


def _nearest(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    heights, edges = np.histogram(ordered, bins=BINS)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(heights))])
    centers = np.interp((np.arange(count) + 0.5) / count * mass[-1], mass, edges)
    for _ in range(ROUNDS):
        ends = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        bounds = np.concatenate([[0], ends, [ordered.size]])
        sizes = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(sizes, 1)
        moved = np.where(sizes > 0, means, centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return np.asarray(centers[np.searchsorted((centers[1:] + centers[:-1]) / 2, values)], np.float64)
