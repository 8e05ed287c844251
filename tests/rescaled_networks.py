"""Trained networks whose channels are rescaled so that they quantize badly.

Between two layers joined by a ReLU, each channel can be scaled up by any positive factor and down again in
the next layer: the function is preserved, and the weights spread over any number of orders of magnitude.
Training produces milder cases of this, because batch norm contributes such factors.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Code, Context

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class Joint(NamedTuple):
    """A batch norm whose output goes through a ReLU into one convolution, by name in the state dict."""

    norm: str
    reader: str


class Network(NamedTuple):
    """A trained network of the recipes, and the joints where it can be rescaled."""

    factory: str
    weights: str
    shape: tuple[int, ...]
    joints: tuple[Joint, ...]


RESNET20 = Network(
    "models.resnet:resnet20",
    "resnet-cifar10/resnet20.th",
    (1, 3, 32, 32),
    tuple(
        Joint(f"layer{layer}.{block}.bn1", f"layer{layer}.{block}.conv2")
        for layer in (1, 2, 3)
        for block in range(3)
    ),
)
"""Weights below the folder of real data."""

DIGITS = Network(
    "models.digits_cnn:digits_cnn",
    "digits/digits.safetensors",
    (1, 1, 8, 8),
    tuple(Joint(f"block{block}.bn1", f"block{block}.pointwise") for block in (1, 2)),
)
"""Weights beside the recipes."""


def rescaled(
    state: Mapping[str, Any], joints: Iterable[Joint], *, factor: float, seed: int = 0
) -> dict[str, Any]:
    """The same function with every channel between the joints scaled by an individual factor.

    Args:
        state: a PyTorch state dict.
        joints: where to rescale.
        factor: channels are scaled by factors spread evenly, on a logarithmic scale, from 1 to this.
        seed: of the order in which channels get them.
    """
    import torch

    random = np.random.default_rng(seed)
    changed = dict(state)
    for norm, reader in joints:
        count = len(changed[f"{norm}.weight"])
        factors = torch.tensor(factor ** random.permutation(np.linspace(0, 1, count)))
        for part in ("weight", "bias"):
            name = f"{norm}.{part}"
            changed[name] = (changed[name].double() * factors).float()
        weight = changed[f"{reader}.weight"]
        changed[f"{reader}.weight"] = (weight.double() / factors.reshape(1, -1, 1, 1)).float()
    return changed


def exported(network: Network, folder: Path, *, data: Path | None = None, factor: float = 1.0) -> Model:
    """The network as an exported program below ``folder``; ``factor`` 1 leaves it unchanged."""
    from edgeopt.stages.load_torch import LoadTorch
    from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram

    spec = TensorSpec(name="image", shape=network.shape, layout="NCHW")
    weights = (data or RECIPES) / network.weights
    load = LoadTorch(factory=Code(target=network.factory, folder=RECIPES), weights=weights, inputs=(spec,))
    loaded = load.run(Model(format="torch_source", path=weights), context(folder / "trained"))
    if factor != 1.0:
        from safetensors.torch import load_file, save_file

        path = folder / "hostile.safetensors"
        stored = load_file(loaded.path / "weights.safetensors")
        save_file(rescaled(stored, network.joints, factor=factor), path)
        hostile = load.model_copy(update={"weights": path})
        loaded = hostile.run(Model(format="torch_source", path=path), context(folder / "hostile"))
    return TorchToExportedProgram().run(loaded, context(folder / "exported"))


def context(folder: Path) -> Context:
    """A context with an empty folder and no data."""
    folder.mkdir(parents=True)
    return Context(folder, None, lambda line: None)
