"""Cutting channels out of a Keras 3 model: a smaller model from the same configuration and weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import loading as keras_files
from edgeopt.formats.keras.graph.layers import weighted
from edgeopt.formats.keras.prune.channels import Atoms, Bundle, Channels


def importance(channels: Channels, bundle: Bundle) -> NDArray[np.float64]:
    """How much each channel of a bundle matters, shape ``[channels]``; only the order has a meaning.

    L2 norm of the weights that make the channel, times the scale of the batch normalization that directly
    follows (what the convolution would have if both were folded), relative to the layer's mean; the mean
    over all layers that make it (Li et al. 2017, arXiv:1608.08710, extended to tied channels).
    """
    layers = {call.path: call.layer for call in weighted(channels.graph)}
    totals = np.zeros(len(bundle.channels))
    for path in bundle.producers:
        producer = channels.producers[path]
        kernel = np.moveaxis(np.asarray(layers[path].weights[producer.weight], np.float64), producer.axis, -1)
        norms = np.sqrt((kernel.reshape(-1, kernel.shape[-1]) ** 2).sum(axis=0))
        if path in channels.normalized:
            norms = norms * _scale(layers[channels.normalized[path]])
        norms = norms / (norms.mean() or 1.0)
        per_root: dict[int, float] = {}
        for root, norm in zip(channels.root(producer.atoms).tolist(), norms.tolist(), strict=True):
            per_root[root] = per_root.get(root, 0.0) + norm
        totals += [per_root[root] for root in bundle.channels.tolist()]
    return totals / len(bundle.producers)


def _scale(normalization: Any) -> NDArray[np.float64]:
    spread = np.sqrt(np.asarray(normalization.moving_variance, np.float64) + normalization.epsilon)
    gamma = 1.0 if normalization.gamma is None else np.asarray(normalization.gamma, np.float64)
    return np.asarray(np.abs(gamma / spread), np.float64)


def without(network: Any, channels: Channels, removed: Atoms, name: str) -> Any:
    """The model without the channels ``removed`` (tied numbers, as in ``Bundle.channels``).

    Layers keep their names, order and options. The smaller model gives what the larger one gives when
    every weight that reads a removed channel is zero.

    Raises:
        StageError: when Keras cannot rebuild the model.
    """
    gone = frozenset(removed.tolist())

    def stays(atoms: Atoms) -> NDArray[np.bool_]:
        return np.array([root not in gone for root in channels.root(atoms).tolist()], bool)

    sizes = {path: (setting, int(stays(atoms).sum())) for path, (setting, atoms) in channels.settings.items()}
    try:
        smaller = type(network).from_config(resized(network.get_config(), sizes))
    except keras_files.UNREADABLE as error:
        raise StageError(
            f"Keras cannot rebuild {name} with fewer channels: {keras_files.reason(error)}",
            fix="name the layer in 'keep', so that its channels stay",
        ) from error
    old, new = layers_by_path(network), layers_by_path(smaller)
    for path, layer in old.items():
        arrays = [np.asarray(weight) for weight in layer.weights]
        for index, axes in channels.weights.get(path, {}).items():
            if index < len(arrays):  # no bias: one array less
                for axis, atoms in axes.items():
                    arrays[index] = np.compress(stays(atoms), arrays[index], axis=axis)
        if arrays:
            new[path].set_weights(arrays)
    return smaller


def layers_by_path(network: Any, prefix: str = "") -> dict[str, Any]:
    """Every layer that is no model itself, by the path that ``keras_graph`` gives it."""
    from edgeopt.formats.keras.graph.layers import is_model

    found: dict[str, Any] = {}
    for layer in network.layers:
        if is_model(layer):
            found |= layers_by_path(layer, f"{prefix}{layer.name}/")
        else:
            found[prefix + str(layer.name)] = layer
    return found


def resized(config: Any, sizes: Mapping[str, tuple[str, int]], prefix: str = "") -> Any:
    """A model's configuration with other channel counts. ``sizes``: path to setting and new count."""
    layers = []
    for entry in config["layers"]:
        inner = entry["config"]
        path = prefix + str(inner.get("name", entry.get("name")))
        if isinstance(inner, dict) and "layers" in inner:
            inner = resized(inner, sizes, path + "/")
        elif path in sizes:
            setting, count = sizes[path]
            value = inner[setting]
            inner = inner | {setting: count if isinstance(value, int) else _last(value, count)}
        # What a layer was built with counts the old channels.
        layers.append(
            {key: value for key, value in entry.items() if key != "build_config"} | {"config": inner}
        )
    return {key: value for key, value in config.items() if key != "build_input_shape"} | {"layers": layers}


def _last(shape: Any, count: int) -> tuple[Any, ...]:
    return (*shape[:-1], -1 if shape[-1] == -1 else count)
