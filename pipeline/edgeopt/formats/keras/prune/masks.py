"""Constraints on the weights of a Keras model during training: zeros, N:M patterns, shared values.

The zeros and shared values are read from the weights themselves. Gradient descent is projected onto the
weights that remain free: weights that share a value receive the mean of their gradients, so that they stay
bit-identical, and masks preserve the zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.files.archive import Kept
from edgeopt.formats.keras.prune.sparsity import smallest_zeroed

Values: TypeAlias = NDArray[np.float32]


class Constraints:
    """Enforces a record of constraints on ``weights``, TensorFlow variables by name.

    Where ``dense`` has the weights from before pruning, training starts from these and prunes gradually: the
    sparsity follows the cubic schedule of Zhu & Gupta 2017 (arXiv:1710.01878) over the first half of the
    epochs, and the smallest weights of the moment are set to zero.
    """

    def __init__(
        self, weights: Mapping[str, Any], kept: Kept, dense: Mapping[str, Values], epochs: int
    ) -> None:
        import tensorflow as tf

        self._shares = {name: share for name, share in kept.sparse.items() if name in dense}
        self._final_epoch = (epochs + 1) // 2 if self._shares else 0
        self._weights = dict(weights)
        self._masks: dict[str, Any] = {}
        self._members: dict[str, NDArray[np.int32]] = {}
        for name, variable in weights.items():
            values = np.asarray(variable)
            if name in kept.sparse:
                # The mask is a variable, not a constant: the training step is traced once, and the mask
                # changes between epochs.
                if name in dense:
                    variable.assign(dense[name])
                mask = np.ones_like(values) if name in dense else (values != 0).astype(np.float32)
                self._masks[name] = tf.Variable(mask, trainable=False)
            if name in kept.clustered:
                self._members[name] = np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int32)
        self._names = {id(variable): name for name, variable in weights.items()}

    def begin(self, epoch: int) -> bool:
        """Apply the sparsity scheduled for this epoch; whether the final sparsity is reached."""
        if 0 < epoch <= self._final_epoch:
            progress = epoch / self._final_epoch
            for name, share in self._shares.items():
                values = np.asarray(self._weights[name])
                thinned = smallest_zeroed(values, share * (1 - (1 - progress) ** 3))
                self._weights[name].assign(thinned)
                self._masks[name].assign((thinned != 0).astype(np.float32))
        return epoch >= self._final_epoch

    def project(self, variable: Any, gradient: Any) -> Any:
        """The gradient of a weight, projected onto its constraints."""
        import tensorflow as tf

        name = self._names.get(id(variable), "")
        if name in self._members:
            member = self._members[name]
            flat = tf.reshape(gradient, [-1])
            means = tf.math.unsorted_segment_mean(flat, member, int(member.max()) + 1)
            gradient = tf.reshape(tf.gather(means, member), gradient.shape)
        return gradient * self._masks[name] if name in self._masks else gradient

    def restore_zeros(self, variable: Any) -> None:
        """Restore the zeros after a step: momentum from before a weight was pruned still moves it."""
        name = self._names.get(id(variable), "")
        if name in self._masks:
            variable.assign(variable * self._masks[name])

    def state(self) -> Sequence[Any]:
        """The variables that a checkpoint needs to resume."""
        return list(self._masks.values())
