"""PyTorch modules in files: code that builds the module, sizes that were changed since, and weights.

A folder holds ``model.json`` (factory, digest of its code, arguments, inputs; ``resized``: the sizes of
layers that were pruned; ``keeps``: what further training must keep, see ``torch_keeping``) and
``weights.safetensors``, keyed as the module's ``state_dict``. Nothing in it is a pickle, and nothing says
where the code lies: a folder found in the store may have been made elsewhere. ``agent/torchside.py`` builds
the same.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt.config.references import Code
from edgeopt.errors import StageError
from edgeopt.formats.torch.files import specs as torch_specs
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
"""Attributes of torch's layers that say how large they are."""

Resized: TypeAlias = dict[str, dict[str, int]]
"""Name of a layer -> its sizes."""


def build(model: Model) -> "torch.nn.Module":
    """The module of a model of format ``torch``, in evaluation mode.

    Raises:
        StageError: when its factory returns something else, or the weights do not fit.
    """
    import torch
    from safetensors.torch import load_file

    described = about(model.path)
    torch.manual_seed(0)
    factory = Code(target=described["factory"], folder=model.code)
    module = factory.load()(**described["arguments"])
    if not isinstance(module, torch.nn.Module):
        raise StageError(f"{factory.target} returned a {type(module).__name__}, not a torch.nn.Module")
    weights = load_file(model.path / WEIGHTS)
    resize(module, described.get("resized", {}), weights)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise StageError(
            f"the stored weights do not fit {factory.target}: {torch_engine.brief(error)}",
            fix="the code has changed since the weights were stored: run again with the code of then",
        ) from error
    return module.eval()


def resize(module: "torch.nn.Module", resized: Resized, weights: "Mapping[str, torch.Tensor]") -> None:
    """Give layers the sizes they were pruned to; their tensors take the shapes of ``weights``."""
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
    """The sizes of a layer, as far as it has them."""
    found = {name: getattr(layer, name, None) for name in SIZES}
    return {name: value for name, value in found.items() if isinstance(value, int)}


def about(folder: Path) -> dict[str, Any]:
    """What ``model.json`` says."""
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
    """Write a module that came from ``model``; ``changed`` replaces parts of its description.

    Args:
        module: the module as it is now.
        folder: a new folder.
        model: what it was built from.
        changed: entries of ``model.json`` that are other than before; None removes one.
        carry: names of further files to take over from the old folder.
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
    """Write all parameters and buffers, each with memory of its own: safetensors refuses shared memory."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
    save_file(dict(sorted(tensors.items())), path)
