"""Removing the channels that are missed least, and making up for them in the layers that read them.

The outputs of a layer that reads channels are a linear function of its inputs. With the second moments of
these inputs over sample data it is known, for every channel, by how much the outputs must change if it goes
and all others take over what they can (optimal brain surgeon: Hassibi & Stork 1992; for groups of weights,
Frantar & Alistarh 2022, arXiv:2208.11580). Channels are removed one by one, the least missed first.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.graph.layers import Call, graph_of
from edgeopt.formats.keras.prune.channels import Bundle, Channels

Matrix: TypeAlias = NDArray[np.float64]
Batch: TypeAlias = Sequence[NDArray[np.float32]]

READERS = frozenset({"Conv1D", "Conv2D", "Dense"})
DAMPING = 1e-3
"""Added to the moments' diagonal, as a share of its mean: channels may be copies of each other."""


class Reader(NamedTuple):
    """A layer that reads channels: the moments of its inputs, and where each channel lies in them."""

    call: Call
    moments: Matrix
    """Of one row per kernel value of an output, and a constant for the bias; shape ``[rows, rows]``."""
    roots: NDArray[np.int64]
    """The tied channel of every row; -1 for the constant."""

    @property
    def weights(self) -> Matrix:
        """Shape ``[rows, outputs]``, the bias last."""
        kernel = np.asarray(self.call.layer.kernel, np.float64)
        rows = kernel.reshape(-1, kernel.shape[-1])
        return np.vstack([rows, np.asarray(self.call.layer.bias)]) if self.call.layer.use_bias else rows


def readers(
    network: Any, channels: Channels, wanted: Sequence[Bundle], batches: Iterable[Batch], name: str
) -> list[Reader]:
    """Run the data through the model and gather the moments before every layer that reads ``wanted``.

    Layers that are used more than once, or lie in a model of their own, are passed over.
    """
    import keras

    graph = graph_of(network, name)
    uses = [call.path for call in graph.calls]
    sought = {root for bundle in wanted for root in bundle.channels.tolist()}
    found = [
        call
        for call in graph.calls
        if call.kind in READERS
        and uses.count(call.path) == 1
        and "/" not in call.path
        and getattr(call.layer, "groups", 1) == 1
        and not sought.isdisjoint(_roots(call, channels).tolist())
    ]
    if not found:
        return []
    before = keras.Model(network.inputs, [call.node.input_tensors[0] for call in found])
    sums: list[Matrix | float] = [0.0] * len(found)
    for batch in batches:
        taken = before(list(batch), training=False)
        taken = taken if isinstance(taken, list | tuple) else [taken]
        for number, (call, tensor) in enumerate(zip(found, taken, strict=True)):
            rows = _rows(call, tensor)
            sums[number] = sums[number] + (rows.T @ rows).astype(np.float64)
    return [
        Reader(call, np.asarray(moments), _roots(call, channels))
        for call, moments in zip(found, sums, strict=True)
    ]


def missed(bundle: Bundle, found: Sequence[Reader]) -> NDArray[np.float64] | None:
    """How late each channel of a bundle is removed if all go, one by one; None if nothing is known of it."""
    able = _reading(bundle, found)
    if not able:
        return None
    order = [root for root, _ in _removal(able, bundle.channels.tolist(), len(bundle.channels) - 1)]
    return np.array([order.index(root) if root in order else len(order) for root in bundle.channels], float)


def make_up(found: Sequence[Reader], removed: NDArray[np.int64]) -> None:
    """Change the weights of every reader, in place, so that its outputs miss the removed channels least."""
    for reader in found:
        gone = [root for root in removed.tolist() if root in reader.roots]
        weights = reader.weights
        for _, changed in _removal([reader], gone, len(gone)):
            (weights,) = changed
        if gone:
            kernel = reader.call.layer.kernel
            kernel.assign(weights[: int(np.prod(kernel.shape[:-1]))].reshape(kernel.shape))
            if reader.call.layer.use_bias:
                reader.call.layer.bias.assign(weights[-1])


def _reading(bundle: Bundle, found: Sequence[Reader]) -> list[Reader]:
    first = bundle.channels[0]
    return [reader for reader in found if first in reader.roots]


def _removal(
    able: Sequence[Reader], candidates: Sequence[int], count: int
) -> Iterator[tuple[int, list[Matrix]]]:
    """Remove ``count`` of the channels, the least missed first; yields each and the weights then."""
    states = [(_inverse(reader.moments), reader.weights.copy()) for reader in able]
    energies = [float(np.sum(w * (r.moments @ w))) or 1.0 for r, (_, w) in zip(able, states, strict=True)]
    places = [{root: np.flatnonzero(reader.roots == root) for root in candidates} for reader in able]
    left = list(candidates)
    for _ in range(count):
        losses = {
            root: sum(
                _loss(inverse, weights, place[root]) / energy
                for (inverse, weights), place, energy in zip(states, places, energies, strict=True)
            )
            for root in left
        }
        root = min(left, key=lambda candidate: losses[candidate])
        left.remove(root)
        for (inverse, weights), place in zip(states, places, strict=True):
            _remove(inverse, weights, place[root])
        yield root, [weights for _, weights in states]


def _inverse(moments: Matrix) -> Matrix:
    scale = float(np.mean(np.diag(moments))) or 1.0
    return np.asarray(np.linalg.inv(moments + DAMPING * scale * np.eye(len(moments))), np.float64)


def _loss(inverse: Matrix, weights: Matrix, rows: NDArray[np.intp]) -> float:
    """Squared error of the outputs if these rows go and the others make up for it."""
    lost = weights[rows]
    return float(np.sum(lost * np.linalg.solve(inverse[np.ix_(rows, rows)], lost)))


def _remove(inverse: Matrix, weights: Matrix, rows: NDArray[np.intp]) -> None:
    """Take rows out of the weights and of the inverse moments, in place."""
    towards = np.linalg.solve(inverse[np.ix_(rows, rows)], inverse[rows])
    weights -= towards.T @ weights[rows]
    weights[rows] = 0
    inverse -= inverse[:, rows] @ towards
    inverse[rows] = 0
    inverse[:, rows] = 0


def _roots(call: Call, channels: Channels) -> NDArray[np.int64]:
    kernel = call.layer.kernel
    taken = channels.root(channels.weights[call.path][0][len(kernel.shape) - 2])
    rows = np.tile(taken, int(np.prod(kernel.shape[:-2])))
    return np.append(rows, -1) if call.layer.use_bias else rows


def _rows(call: Call, tensor: Any) -> NDArray[np.float32]:
    """What every output of a layer is computed from, one row each."""
    import tensorflow as tf

    layer = call.layer
    if call.kind != "Dense":
        flat = call.kind == "Conv1D"
        if layer.padding == "causal":
            tensor = tf.pad(
                tensor, [[0, 0], [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0], [0, 0]]
            )
        tensor = tf.expand_dims(tensor, 2) if flat else tensor
        one = (1,) if flat else ()
        tensor = tf.image.extract_patches(
            tensor,
            sizes=(1, *layer.kernel_size, *one, 1),
            strides=(1, *layer.strides, *one, 1),
            rates=(1, *layer.dilation_rate, *one, 1),
            padding="SAME" if layer.padding == "same" else "VALID",
        )
    rows = np.asarray(tf.reshape(tensor, [-1, tensor.shape[-1]]), np.float32)
    return np.hstack([rows, np.ones((len(rows), 1), np.float32)]) if layer.use_bias else rows
