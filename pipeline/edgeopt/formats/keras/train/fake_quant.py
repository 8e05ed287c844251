"""A Keras 3 model with the rounding of int8 built in, to train with, and the way back to float weights.

tfmot 0.8.1 builds it (Jacob et al. 2018, arXiv:1712.05877), and works on tf_keras alone: the model is
rebuilt there, and what was learned is copied back. It leaves batch normalization as it is; as scales per
output channel commute with the per-channel scales of the weights, that rounds as the folded model does.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.files.loading import input_structure
from edgeopt.formats.keras.graph.to_tf_keras import rebuild

WHOLE = frozenset({"SeparableConv1D", "SeparableConv2D"})
"""Layers that tfmot takes apart, so that their weights have no place to come back from."""


class FakeQuantized:
    """``network``: what is trained. Its ranges are those that the float model has on ``samples``.

    tfmot starts with ranges of -6..6 and follows with a memory of 1,000 steps: weights would be trained
    for ranges that are not theirs. Here they are measured again whenever ``measure`` is called.
    """

    def __init__(self, source: Any, name: str, samples: Sequence[NDArray[np.float32]]) -> None:
        from tensorflow_model_optimization.python.core.quantization.keras import quantize

        self._source, self._samples = source, samples
        self._plain = rebuild(source, name)
        for path, layer in self._plain.layers.items():
            if type(layer).__name__ in WHOLE:
                raise _unfit(path, layer, name, "tfmot takes it apart, and its weights would not come back")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.network = quantize.quantize_model(self._plain.network)
        except (RuntimeError, ValueError) as error:
            named = next(
                (p for p, layer in self._plain.layers.items() if f"{layer.name}:" in str(error)), None
            )
            layer = self._plain.layers.get(named or "")
            why = " ".join(str(error).split())[:300]
            if named is None or layer is None:
                raise StageError(
                    f"tfmot cannot train {name} for int8: {why}", fix="train without quantization_aware"
                ) from error
            raise _unfit(named, layer, name, why) from error
        self._wrapped = {_inside(layer).name: layer for layer in self.network.layers}
        self._pairs = list(self._matched(name))

    def measure(self) -> None:
        """Set every range of activations to what the float model with these weights has on the samples."""
        import tensorflow as tf
        import tf_keras

        for ours, theirs, _ in self._pairs:
            ours.assign(theirs)
        plain = self._plain.network
        names = [layer.name for layer in plain.layers]
        every = tf_keras.Model(plain.inputs, [layer.output for layer in plain.layers])
        values = [tf.convert_to_tensor(sample) for sample in self._samples]
        found = every(tf.nest.pack_sequence_as(input_structure(plain), values), training=False)
        ranges = {
            name: (min(0.0, float(np.min(value))), max(0.0, float(np.max(value))))
            for name, value in zip(names, tf.nest.flatten(found), strict=True)
        }
        entry = ranges[plain.input_names[0]]
        for name, wrapper in self._wrapped.items():
            low, high = ranges.get(name, entry)
            for variable in wrapper.variables:
                kind = _short(variable)
                if (
                    tuple(variable.shape) == ()
                    and kind.endswith(("_min", "_max"))
                    and not kind.startswith("kernel")
                ):
                    variable.assign(low if kind.endswith("_min") else high)

    def variable(self, path: str, index: int) -> Any:
        """The variable that stands for a weight of the source model."""
        wanted = self._plain.layers[path].weights[index]
        return next(theirs for ours, theirs, _ in self._pairs if ours is wanted)

    def bring_back(self) -> None:
        """Copy what was learned to the source model, statistics of batch normalization included."""
        for _, theirs, source in self._pairs:
            source.assign(np.asarray(theirs))

    def _matched(self, name: str) -> Iterator[tuple[Any, Any, Any]]:
        """Every weight as it is in the rebuilt, the quantized and the source model."""
        from edgeopt.formats.keras.prune.remove_channels import layers_by_path

        sources = layers_by_path(self._source)
        for path, layer in self._plain.layers.items():
            wrapper = self._wrapped.get(layer.name)
            theirs = {} if wrapper is None else {_short(variable): variable for variable in wrapper.variables}
            for ours, source in zip(layer.weights, getattr(sources[path], "weights", ()), strict=True):
                if _short(ours) not in theirs:
                    raise _unfit(path, layer, name, f"its weight {_short(ours)!r} is not found again")
                yield ours, theirs[_short(ours)], source


def _inside(layer: Any) -> Any:
    return getattr(layer, "layer", layer)


def _short(variable: Any) -> str:
    """``kernel`` for ``conv/kernel:0``."""
    return str(variable.name).rpartition("/")[2].partition(":")[0]


def _unfit(path: str, layer: Any, name: str, why: str) -> StageError:
    return StageError(
        f"layer {path!r} ({type(layer).__name__}) of {name} cannot be trained for int8: {why}",
        fix="train without quantization_aware, or replace the layer",
    )
