"""Shared by the runtimes built on torch: loading, threads, tensors, and flattening of outputs."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import AgentError, explained, refuse
from edgeopt_agent.session import Spec


def limit_threads(threads: int) -> None:
    """Import torch and limit it to ``threads`` threads."""
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)


def as_tensors(arrays: list[Any]) -> list[Any]:
    """numpy arrays as tensors; memory is shared unless the array is read-only."""
    import numpy as np
    import torch

    return [torch.from_numpy(array if array.flags.writeable else np.array(array)) for array in arrays]


def as_arrays(value: Any) -> list[Any]:
    """Nested tensors as a flat list of arrays that share no memory with them."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.dequantize() if value.is_quantized else value
        # numpy has no bfloat16.
        value = value.float() if value.dtype == torch.bfloat16 else value
        return [np.array(value.detach().cpu().numpy())]
    if isinstance(value, dict):
        return [array for item in value.values() for array in as_arrays(item)]
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in as_arrays(item)]
    raise AgentError("model", f"the model returns a {type(value).__name__}, which is not a tensor")


def names_of(value: Any) -> list[str]:
    """The keys of a dict of tensors; other results have no names."""
    return [str(key) for key in value] if isinstance(value, dict) else []


def eager_module(folder: Path) -> tuple[Any, list[Spec] | None]:
    """Build a module with its own code and load its weights; also returns the inputs from ``model.json``.

    The code is imported from the Python path, which the job may have extended.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / "model.json").read_text("utf-8"))
    target = config["factory"]
    module_name, _, name = target.partition(":")
    with explained("model", f"the model's own code {target!r} failed"):
        factory: Any = importlib.import_module(module_name)
        for part in name.split("."):
            factory = getattr(factory, part)
        arguments = config.get("arguments") or {}
        module = factory(**arguments) if isinstance(arguments, dict) else factory(*arguments)
    with explained("model", f"{folder.name}/weights.safetensors does not match {target!r}"):
        module.float()  # as the weights were stored, whatever precision the factory builds
        weights = load_file(folder / "weights.safetensors")
        _resize(module, config.get("resized") or {}, weights)
        state = module.state_dict()  # of the present version, which some layers check
        state.clear()
        state.update(weights)
        module.load_state_dict(state)
    specs = config.get("inputs")
    if not specs:
        return module.eval(), None
    # What has another size there than the smallest, such as the state of two layers, has no batch axis.
    batch = min((spec["shape"][0] or 1 for spec in specs if spec["shape"]), default=1)
    return module.eval(), [
        Spec(
            spec["name"],
            (None if spec["shape"][:1] in ([], [None], [batch]) else spec["shape"][0], *spec["shape"][1:]),
            spec.get("dtype", "float32"),
        )
        for spec in specs
    ]


def _resize(module: Any, resized: dict[str, dict[str, int]], weights: dict[str, Any]) -> None:
    """Set layers to their pruned sizes, and their tensors to the shapes of the stored weights."""
    import torch

    for name, sizes in resized.items():
        layer = module.get_submodule(name)
        for attribute, value in sizes.items():
            if isinstance(getattr(layer, attribute), int):
                setattr(layer, attribute, value)
        for key, old in list(layer.named_parameters(recurse=False)):
            resized_tensor = torch.empty(weights[name + "." + key].shape, dtype=old.dtype)
            layer.register_parameter(key, torch.nn.Parameter(resized_tensor))
        for key, old in list(layer.named_buffers(recurse=False)):
            if name + "." + key in weights:
                layer.register_buffer(key, torch.empty(weights[name + "." + key].shape, dtype=old.dtype))


def exported_program(path: Path, trust: bool) -> tuple[Any, list[Spec]]:
    """The program of a ``.pt2`` file, and its inputs.

    Raises:
        AgentError: kind ``model``: not an archive, or an untrusted one with more than a network.
    """
    if not zipfile.is_zipfile(path):
        raise AgentError("model", f"{path.name} is not an exported program: not a zip archive")
    if not trust:
        from edgeopt_untrusted import torch_files

        refuse(path.name, torch_files.findings_for_torch(path))
    import torch

    program = torch.export.load(path)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = [
        Spec(
            name,
            tuple(size if isinstance(size, int) else None for size in values[name].shape),
            str(values[name].dtype).replace("torch.", ""),
        )
        for name in program.graph_signature.user_inputs
    ]
    return program, specs
