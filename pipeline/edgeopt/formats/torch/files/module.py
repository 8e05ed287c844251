"""PyTorch modules in files: the code that builds the module, the sizes of pruned layers, and the weights.

A folder contains ``model.json`` (factory, digest of its code, arguments, inputs; ``resized``: the sizes of
pruned layers; ``keeps``: the constraints on further training, see `edgeopt.formats.torch.prune.masks`) and
``weights.safetensors``, keyed like the module's ``state_dict``. It contains no pickle and no path to the
code: a folder in the store may come from another machine. ``devices/agent/torchside.py`` builds the same
module on the device.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt.config.references import Code
from edgeopt.errors import StageError
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.files.state_dicts import with_versions
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model

if TYPE_CHECKING:
    import torch

ABOUT, WEIGHTS = "model.json", "weights.safetensors"

SIZES = (
    *("in_channels", "out_channels", "groups"),
    *("in_features", "out_features", "num_features"),
    *("num_channels", "num_groups", "num_parameters"),
)
"""Attributes of ``torch.nn`` layers that hold a size."""

Resized: TypeAlias = dict[str, dict[str, int]]
"""Layer name -> size attributes and their values."""


def build(model: Model) -> "torch.nn.Module":
    """Build the module of a model of format ``torch``, in evaluation mode.

    Raises:
        StageError: the factory returns something other than a module, or the weights do not fit.
    """
    import torch
    from safetensors.torch import load_file

    described = about(model.path)
    # Parameters are overwritten below, but a factory may draw other random values that it keeps.
    torch.manual_seed(0)
    factory = Code(target=described["factory"], folder=model.code)
    module = factory.load()(**described["arguments"])
    if not isinstance(module, torch.nn.Module):
        raise StageError(f"{factory.target} returned a {type(module).__name__}, not a torch.nn.Module")
    # The stored weights are float32, as edge runtimes compute; the factory may build another precision.
    module, weights = module.float(), load_file(model.path / WEIGHTS)
    # The factory builds the original sizes; load_state_dict accepts only matching shapes.
    resize(module, described.get("resized", {}), weights)
    try:
        module.load_state_dict(with_versions(weights, module))
    except RuntimeError as error:
        raise StageError(
            f"the stored weights do not fit {factory.target}: {torch_engine.brief(error)}",
            fix="the code has changed since the weights were stored: run again with the earlier code",
        ) from error
    return module.eval()


def resize(module: "torch.nn.Module", resized: Resized, weights: "Mapping[str, torch.Tensor]") -> None:
    """Resize layers in place to their pruned sizes; their tensors take the shapes of ``weights``."""
    import torch

    for name, sizes in resized.items():
        layer = module.get_submodule(name)
        for attribute in sizes.keys() & set(SIZES):
            setattr(layer, attribute, sizes[attribute])
        for key, parameter in list(layer.named_parameters(recurse=False)):
            fresh = torch.empty(weights[f"{name}.{key}"].shape, dtype=parameter.dtype)
            layer.register_parameter(key, torch.nn.Parameter(fresh))
        for key, buffer in list(layer.named_buffers(recurse=False)):
            if f"{name}.{key}" in weights:
                layer.register_buffer(key, torch.empty(weights[f"{name}.{key}"].shape, dtype=buffer.dtype))


def sizes_of(layer: "torch.nn.Module") -> dict[str, int]:
    """Size attributes of a layer, those that it has."""
    sizes = {name: getattr(layer, name, None) for name in SIZES}
    return {name: value for name, value in sizes.items() if isinstance(value, int)}


def about(folder: Path) -> dict[str, Any]:
    """Read ``model.json``."""
    described: dict[str, Any] = json.loads((folder / ABOUT).read_text("utf-8"))
    return described


def save(
    module: "torch.nn.Module",
    folder: Path,
    model: Model,
    *,
    changed: Mapping[str, Any] | None = None,
    carry: Iterable[str] = (),
) -> Model:
    """Write a modified module to a new folder.

    Args:
        module: the module to write.
        folder: path of the folder, which must not exist.
        model: the model that the module was built from.
        changed: entries of ``model.json`` to replace; None removes an entry.
        carry: names of further files to copy from the old folder.

    Returns:
        The written model. Its outputs are measured by a run on zeros.
    """
    described = about(model.path) | dict(changed or {})
    folder.mkdir()
    write_about(folder, {key: value for key, value in described.items() if value is not None})
    write_weights(module, folder / WEIGHTS)
    for name in carry:
        if (model.path / name).is_file():
            shutil.copyfile(model.path / name, folder / name)
    outputs = torch_specs.describe_outputs(torch_engine.run(module.eval(), model.inputs), model.outputs)
    return Model(format="torch", path=folder, inputs=model.inputs, outputs=outputs, code=model.code)


def write_about(folder: Path, described: Mapping[str, Any]) -> None:
    """Write ``model.json``."""
    (folder / ABOUT).write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", "utf-8")


def write_weights(module: "torch.nn.Module", path: Path) -> None:
    """Write all parameters and buffers, each as its own copy: safetensors rejects shared memory."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
    save_file(dict(sorted(tensors.items())), path)
