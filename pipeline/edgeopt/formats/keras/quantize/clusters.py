"""Weight clustering: few distinct values per kernel of a Keras 3 model, so that the file compresses."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.files.archive import Kept
from edgeopt.formats.keras.prune.sparsity import Kernel, Weights
from edgeopt.formats.layer_names import matching

ROUNDS = 100
BINS = 256


def share_values(
    kernels: Sequence[Kernel], clusters: int, layers: Mapping[str, int], kept: Kept
) -> tuple[Kept, float]:
    """Cluster every kernel to at most ``clusters`` values, in place (Han et al. 2016, arXiv:1510.00149).

    The zeros of a pruned kernel are preserved and count as one of its values.

    Returns:
        The constraints that training has to keep, and the fraction of the weights' energy that was lost.

    Raises:
        StageError: a pattern matches no layer.
    """
    patterns = matching(layers, [kernel.path for kernel in kernels], "layers")
    clustered: dict[str, int] = {}
    lost = energy = 0.0
    for kernel in kernels:
        before = kernel.values
        count = layers[patterns[kernel.path]] if kernel.path in patterns else clusters
        after = few_values(before, count, keep_zeros=kernel.name in kept.sparse)
        kernel.layer.weights[kernel.place].assign(after)
        clustered[kernel.name] = len(np.unique(after))
        lost += float(((after - before).astype(np.float64) ** 2).sum())
        energy += float((before.astype(np.float64) ** 2).sum())
    return Kept(clustered=clustered), lost / (energy or 1.0)


def few_values(values: Weights, count: int, *, keep_zeros: bool) -> Weights:
    """The array with each value replaced by the nearest of at most ``count`` (one-dimensional k-means)."""
    flat = values.ravel().astype(np.float64)
    free = np.flatnonzero(flat) if keep_zeros else np.arange(flat.size)
    count -= int(free.size < flat.size)  # zero takes one of the values
    if np.unique(flat[free]).size > count:
        flat[free] = _k_means(flat[free], count)
    return flat.reshape(values.shape).astype(np.float32)


def _k_means(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Each value replaced by the centre of its cluster, by Lloyd's algorithm."""
    # In one dimension a cluster is a contiguous slice of the sorted values, and its mean follows from
    # prefix sums: an iteration costs O(count log n) instead of O(count n).
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    # Initial centres with the density that minimizes the error of a fine quantizer: the cube root of the
    # density of the values (Panter & Dite 1951). Deterministic, unlike a random initialization.
    heights, edges = np.histogram(ordered, bins=BINS)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(heights))])
    centers = np.interp((np.arange(count) + 0.5) / count * mass[-1], mass, edges)
    for _ in range(ROUNDS):
        ends = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        bounds = np.concatenate([[0], ends, [ordered.size]])
        sizes = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(sizes, 1)
        # An empty cluster has no mean: its centre stays where it is.
        moved = np.where(sizes > 0, means, centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return np.asarray(centers[np.searchsorted((centers[1:] + centers[:-1]) / 2, values)], np.float64)
