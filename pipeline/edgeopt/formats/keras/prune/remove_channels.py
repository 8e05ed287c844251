"""Removal of channels from a Keras 3 model: a smaller model from the edited configuration and weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.keras.graph.layers import weighted
from edgeopt.formats.keras.prune.channels import Atoms, Bundle, Channels


def importance(channels: Channels, bundle: Bundle) -> NDArray[np.float64]:
    """Importance of each channel of a bundle by weight norm, shape ``[channels]``; only the order matters.

    The L2 norm of the weights that produce the channel, times the scale of a directly following batch
    normalization, relative to the layer's mean; averaged over all layers that produce the channel
    (Li et al. 2017, arXiv:1608.08710, extended to tied channels).
    """
    layers = {call.path: call.layer for call in weighted(channels.graph)}
    totals = np.zeros(len(bundle.channels))
    for path in bundle.producers:
        producer = channels.producers[path]
        kernel = np.moveaxis(np.asarray(layers[path].weights[producer.weight], np.float64), producer.axis, -1)
        norms = np.sqrt((kernel.reshape(-1, kernel.shape[-1]) ** 2).sum(axis=0))
        # The normalization rescales the channel: the norm is that of the folded convolution.
        if path in channels.normalized:
            norms = norms * _scale(layers[channels.normalized[path]])
        # Relative to the layer: tied channels are averaged over layers with weights of different magnitude.
        norms = norms / (norms.mean() or 1.0)
        # A layer can produce a tied channel several times, for example when it adds its own output to itself.
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

    Layers keep their names, order and options. The outputs equal those of the original model with zeros in
    every weight that reads a removed channel.

    Raises:
        StageError: Keras cannot rebuild the model.
    """
    gone = frozenset(removed.tolist())

    def stays(atoms: Atoms) -> NDArray[np.bool_]:
        return np.array([root not in gone for root in channels.root(atoms).tolist()], bool)

    sizes = {path: (setting, int(stays(atoms).sum())) for path, (setting, atoms) in channels.settings.items()}
    try:
        smaller = type(network).from_config(resized(network.get_config(), sizes))
    except keras_loading.UNREADABLE as error:
        raise StageError(
            f"Keras cannot rebuild {name} with fewer channels: {keras_loading.reason(error)}",
            fix="add the layer to 'keep', so that its channels remain",
        ) from error
    old, new = layers_by_path(network), layers_by_path(smaller)
    for path, layer in old.items():
        arrays = [np.asarray(weight) for weight in layer.weights]
        for index, axes in channels.weights.get(path, {}).items():
            if index < len(arrays):  # a layer without bias has one array less
                for axis, atoms in axes.items():
                    arrays[index] = np.compress(stays(atoms), arrays[index], axis=axis)
        if arrays:
            new[path].set_weights(arrays)
    return smaller


def layers_by_path(network: Any, prefix: str = "") -> dict[str, Any]:
    """Every layer that is not itself a model, by its path as in ``graph_of``."""
    from edgeopt.formats.keras.graph.layers import is_model

    layers: dict[str, Any] = {}
    for layer in network.layers:
        if is_model(layer):
            layers |= layers_by_path(layer, f"{prefix}{layer.name}/")
        else:
            layers[prefix + str(layer.name)] = layer
    return layers


def resized(config: Any, sizes: Mapping[str, tuple[str, int]], prefix: str = "") -> Any:
    """A model's configuration with new channel counts. ``sizes``: path to setting and new count."""
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
        # The recorded build shapes have the old number of channels, and Keras would build with them.
        layers.append(
            {key: value for key, value in entry.items() if key != "build_config"} | {"config": inner}
        )
    return {key: value for key, value in config.items() if key != "build_input_shape"} | {"layers": layers}


def _last(shape: Any, count: int) -> tuple[Any, ...]:
    """A shape with another last size; -1 in a ``target_shape`` is inferred and stays."""
    return (*shape[:-1], -1 if shape[-1] == -1 else count)
