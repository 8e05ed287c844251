"""Quantization-aware training of a Keras 3 model: fake quantization to int8, and back to float weights.

Fake quantization comes from tfmot 0.8.1 (Jacob et al. 2018, arXiv:1712.05877), which supports tf_keras only:
the model is rebuilt there, and the trained weights are copied back. Batch normalization is not folded; its
scale per output channel commutes with the per-channel scale of the weights, so rounding equals that of the
folded model.
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
"""Layers that tfmot splits, so that their weights cannot be copied back."""


class FakeQuantized:
    """``network`` is the model to train; its activation ranges are those of the float model on ``samples``.

    tfmot starts with ranges of -6..6 and updates them by a moving average over about 1,000 steps, so a short
    training would use wrong ranges. Here ``measure`` replaces them by measured ones.

    Raises:
        StageError: a layer cannot be trained with fake quantization; the message names it.
    """

    def __init__(self, source: Any, name: str, samples: Sequence[NDArray[np.float32]]) -> None:
        from tensorflow_model_optimization.python.core.quantization.keras import quantize

        self._source, self._samples = source, samples
        self._plain = rebuild(source, name)
        for path, layer in self._plain.layers.items():
            if type(layer).__name__ in WHOLE:
                raise _unsupported(path, layer, name, "tfmot splits it, so its weights cannot be copied back")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.network = quantize.quantize_model(self._plain.network)
        except (RuntimeError, ValueError) as error:
            # tfmot puts the layer's name and a colon into its message.
            cause = next(
                (p for p, layer in self._plain.layers.items() if f"{layer.name}:" in str(error)), None
            )
            layer = self._plain.layers.get(cause or "")
            why = " ".join(str(error).split())[:300]
            if cause is None or layer is None:
                raise StageError(
                    f"tfmot cannot add fake quantization to {name}: {why}",
                    fix="train without quantization_aware",
                ) from error
            raise _unsupported(cause, layer, name, why) from error
        self._wrapped = {_inside(layer).name: layer for layer in self.network.layers}
        self._pairs = list(self._matched(name))

    def measure(self) -> None:
        """Set all activation ranges to those of the float model with the current weights on the samples."""
        import tensorflow as tf
        import tf_keras

        for plain_weight, trained, _ in self._pairs:
            plain_weight.assign(trained)
        plain = self._plain.network
        names = [layer.name for layer in plain.layers]
        with_outputs = tf_keras.Model(plain.inputs, [layer.output for layer in plain.layers])
        values = [tf.convert_to_tensor(sample) for sample in self._samples]
        outputs = with_outputs(tf.nest.pack_sequence_as(input_structure(plain), values), training=False)
        ranges = {
            name: (min(0.0, float(np.min(value))), max(0.0, float(np.max(value))))
            for name, value in zip(names, tf.nest.flatten(outputs), strict=True)
        }
        # Only the layer that quantizes the input has no counterpart in the float model.
        input_range = ranges[plain.input_names[0]]
        for name, wrapper in self._wrapped.items():
            low, high = ranges.get(name, input_range)
            for variable in wrapper.variables:
                kind = _short(variable)
                # Activation ranges are scalars; kernel ranges follow from the weights in every step.
                if (
                    tuple(variable.shape) == ()
                    and kind.endswith(("_min", "_max"))
                    and not kind.startswith("kernel")
                ):
                    variable.assign(low if kind.endswith("_min") else high)

    def variable(self, path: str, index: int) -> Any:
        """The trained variable of weight ``index`` of the source model's layer ``path``."""
        weight = self._plain.layers[path].weights[index]
        return next(trained for plain_weight, trained, _ in self._pairs if plain_weight is weight)

    def copy_back(self) -> None:
        """Copy the trained weights and the statistics of batch normalization to the source model."""
        for _, trained, source in self._pairs:
            source.assign(np.asarray(trained))

    def _matched(self, name: str) -> Iterator[tuple[Any, Any, Any]]:
        """The variables of every weight in the rebuilt, the quantized and the source model."""
        from edgeopt.formats.keras.prune.remove_channels import layers_by_path

        sources = layers_by_path(self._source)
        for path, layer in self._plain.layers.items():
            wrapper = self._wrapped.get(layer.name)
            variables = () if wrapper is None else wrapper.variables
            trained = {_short(variable): variable for variable in variables}
            for weight, source in zip(layer.weights, getattr(sources[path], "weights", ()), strict=True):
                # By name: the wrapper has further variables for the ranges.
                if _short(weight) not in trained:
                    raise _unsupported(path, layer, name, f"tfmot drops its weight {_short(weight)!r}")
                yield weight, trained[_short(weight)], source


def _inside(layer: Any) -> Any:
    """The layer inside a tfmot wrapper, or the layer itself."""
    return getattr(layer, "layer", layer)


def _short(variable: Any) -> str:
    """The last part of a variable's name: ``kernel`` for ``conv/kernel:0``."""
    return str(variable.name).rpartition("/")[2].partition(":")[0]


def _unsupported(path: str, layer: Any, name: str, why: str) -> StageError:
    return StageError(
        f"layer {path!r} ({type(layer).__name__}) of {name} cannot be trained with fake quantization: {why}",
        fix="train without quantization_aware, or replace the layer",
    )
