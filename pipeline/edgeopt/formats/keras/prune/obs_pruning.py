"""Optimal-brain-surgeon pruning: remove the least important channels, compensate in their readers.

The outputs of a layer that reads channels are a linear function of its inputs. The second moments of these
inputs over sample data determine, for every channel, the smallest possible change of the outputs when the
channel is removed and the weights of all others are adjusted (optimal brain surgeon: Hassibi & Stork 1992;
for groups of weights, Frantar & Alistarh 2022, arXiv:2208.11580). Channels are removed one by one, the one
with the smallest change first.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.graph.layers import Call, graph_of
from edgeopt.formats.keras.prune.channels import Bundle, Channels
from edgeopt.formats.second_moments import SecondMoments

Matrix: TypeAlias = NDArray[np.float64]
Batch: TypeAlias = Sequence[NDArray[np.float32]]

READERS = frozenset({"Conv1D", "Conv2D", "Dense"})
DAMPING = 1e-3
"""Added to the diagonal of the moments, as a fraction of its mean: linearly dependent channels, such as
copies of each other, make the matrix singular."""


class Reader(NamedTuple):
    """A layer that reads channels: the second moments of its inputs, and the channel of every input."""

    call: Call
    moments: Matrix
    """One row per kernel value of an output, and one for the constant input of the bias; ``[rows, rows]``."""
    roots: NDArray[np.int64]
    """The tied channel of every row; -1 for the constant input."""

    @property
    def weights(self) -> Matrix:
        """Shape ``[rows, outputs]``, with the bias as the last row."""
        kernel = np.asarray(self.call.layer.kernel, np.float64)
        rows = kernel.reshape(-1, kernel.shape[-1])
        return np.vstack([rows, np.asarray(self.call.layer.bias)]) if self.call.layer.use_bias else rows


def readers(
    network: Any, channels: Channels, bundles: Sequence[Bundle], batches: Iterable[Batch], name: str
) -> list[Reader]:
    """Run the data through the model and accumulate the input moments of every layer that reads ``bundles``.

    Skips layers that are called more than once and layers of nested models.
    """
    import keras

    graph = graph_of(network, name)
    uses = [call.path for call in graph.calls]
    roots = {root for bundle in bundles for root in bundle.channels.tolist()}
    # A layer called several times would need the moments of all its calls together. The tensors of a nested
    # model are not connected to the inputs of the outer one, so `keras.Model` below cannot compute them.
    # Grouped convolutions read a slice of the channels per output, which one moment matrix does not express.
    calls = [
        call
        for call in graph.calls
        if call.kind in READERS
        and uses.count(call.path) == 1
        and "/" not in call.path
        and getattr(call.layer, "groups", 1) == 1
        and not roots.isdisjoint(_roots(call, channels).tolist())
    ]
    if not calls:
        return []
    reader_inputs = keras.Model(network.inputs, [call.node.input_tensors[0] for call in calls])
    sums = [SecondMoments() for _ in calls]
    for batch in batches:
        tensors = reader_inputs(list(batch), training=False)
        tensors = tensors if isinstance(tensors, list | tuple) else [tensors]
        for number, (call, tensor) in enumerate(zip(calls, tensors, strict=True)):
            sums[number].add(_rows(call, tensor)[np.newaxis])
    return [
        Reader(call, moments.matrix[0], _roots(call, channels))
        for call, moments in zip(calls, sums, strict=True)
        if moments.matrix is not None
    ]


def removal_order(bundle: Bundle, measured: Sequence[Reader]) -> NDArray[np.float64] | None:
    """The position of each channel in the order of removal; None if no reader of the bundle was measured."""
    readers_of_bundle = _reading(bundle, measured)
    if not readers_of_bundle:
        return None
    # The last channel need not be removed to be known as the most important one.
    order = [
        root for root, _ in _removal(readers_of_bundle, bundle.channels.tolist(), len(bundle.channels) - 1)
    ]
    return np.array([order.index(root) if root in order else len(order) for root in bundle.channels], float)


def compensate(measured: Sequence[Reader], removed: NDArray[np.int64]) -> None:
    """Adjust the weights of every reader, in place, to compensate for the removed channels."""
    for reader in measured:
        gone = [root for root in removed.tolist() if root in reader.roots]
        weights = reader.weights
        # Each layer separately: the order of elimination does not change its final weights, which solve the
        # least-squares problem with all of these rows fixed to zero.
        for _, changed in _removal([reader], gone, len(gone)):
            (weights,) = changed
        if gone:
            kernel = reader.call.layer.kernel
            kernel.assign(weights[: int(np.prod(kernel.shape[:-1]))].reshape(kernel.shape))
            if reader.call.layer.use_bias:
                reader.call.layer.bias.assign(weights[-1])


def _reading(bundle: Bundle, measured: Sequence[Reader]) -> list[Reader]:
    """The measured readers of a bundle; all its channels have the same readers."""
    first = bundle.channels[0]
    return [reader for reader in measured if first in reader.roots]


def _removal(
    readers: Sequence[Reader], candidates: Sequence[int], count: int
) -> Iterator[tuple[int, list[Matrix]]]:
    """Remove ``count`` channels, the smallest loss first; yields each with the weights after its removal."""
    states = [(_inverse(reader.moments), reader.weights.copy()) for reader in readers]
    # The loss is relative to the energy of a reader's outputs: otherwise the reader with the largest
    # activations would decide alone.
    energies = [float(np.sum(w * (r.moments @ w))) or 1.0 for r, (_, w) in zip(readers, states, strict=True)]
    rows = [{root: np.flatnonzero(reader.roots == root) for root in candidates} for reader in readers]
    left = list(candidates)
    for _ in range(count):
        # All losses again: each removal changes the weights and inverse moments of those that remain.
        losses = {
            root: sum(
                _loss(inverse, weights, rows_of[root]) / energy
                for (inverse, weights), rows_of, energy in zip(states, rows, energies, strict=True)
            )
            for root in left
        }
        root = min(left, key=lambda candidate: losses[candidate])
        left.remove(root)
        for (inverse, weights), rows_of in zip(states, rows, strict=True):
            _remove(inverse, weights, rows_of[root])
        yield root, [weights for _, weights in states]


def _inverse(moments: Matrix) -> Matrix:
    scale = float(np.mean(np.diag(moments))) or 1.0
    return np.asarray(np.linalg.inv(moments + DAMPING * scale * np.eye(len(moments))), np.float64)


def _loss(inverse: Matrix, weights: Matrix, rows: NDArray[np.intp]) -> float:
    """Squared error of the outputs when these rows are removed and the others compensate."""
    lost = weights[rows]
    return float(np.sum(lost * np.linalg.solve(inverse[np.ix_(rows, rows)], lost)))


def _remove(inverse: Matrix, weights: Matrix, rows: NDArray[np.intp]) -> None:
    """Eliminate rows from the weights and from the inverse moments, in place."""
    update = np.linalg.solve(inverse[np.ix_(rows, rows)], inverse[rows])
    weights -= update.T @ weights[rows]
    # These rows are zero up to rounding errors; exact zeros keep the errors out of later steps.
    weights[rows] = 0
    inverse -= inverse[:, rows] @ update
    inverse[rows] = 0
    inverse[:, rows] = 0


def _roots(call: Call, channels: Channels) -> NDArray[np.int64]:
    """The tied channel of every row of a layer's weights; -1 for the bias."""
    kernel = call.layer.kernel
    inputs = channels.root(channels.weights[call.path][0][len(kernel.shape) - 2])
    # In the order of `kernel.reshape(-1, outputs)`: the input channels vary fastest.
    rows = np.tile(inputs, int(np.prod(kernel.shape[:-2])))
    return np.append(rows, -1) if call.layer.use_bias else rows


def _rows(call: Call, tensor: Any) -> NDArray[np.float32]:
    """The inputs of every output position of a layer, one row per position."""
    import tensorflow as tf

    layer = call.layer
    if call.kind != "Dense":
        one_dimensional = call.kind == "Conv1D"
        # TensorFlow has no causal padding: Keras pads the beginning and convolves with VALID.
        if layer.padding == "causal":
            tensor = tf.pad(
                tensor, [[0, 0], [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0], [0, 0]]
            )
        # extract_patches takes images only, so a sequence becomes an image of width 1.
        tensor = tf.expand_dims(tensor, 2) if one_dimensional else tensor
        width = (1,) if one_dimensional else ()
        tensor = tf.image.extract_patches(
            tensor,
            sizes=(1, *layer.kernel_size, *width, 1),
            strides=(1, *layer.strides, *width, 1),
            rates=(1, *layer.dilation_rate, *width, 1),
            padding="SAME" if layer.padding == "same" else "VALID",
        )
    rows = np.asarray(tf.reshape(tensor, [-1, tensor.shape[-1]]), np.float32)
    # The bias is the weight of a constant input: it can compensate for the mean of a removed channel.
    return np.hstack([rows, np.ones((len(rows), 1), np.float32)]) if layer.use_bias else rows
