"""PyTorch itself: a module made by its own code with stored weights, or an exported program."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import AgentError, explained
from edgeopt_agent.session import ModelSession, Spec
from edgeopt_agent.torchside import as_arrays, as_tensors, limit_threads

EAGER_BATCH = 32


class Session(ModelSession):
    """A folder (``model.json`` + ``weights.safetensors``), or a ``.pt2`` exported program.

    Option ``trust``: load an exported program although it holds pickled objects, which can run
    any code.
    """

    requires = ("torch",)
    known_options = ("trust",)

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        if not options.get("trust", False):
            # Reading an exported program unpickles tensors with all protection off otherwise.
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        limit_threads(threads)
        importlib.import_module("safetensors.torch" if path.is_dir() else "torch.export")

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.eager = path.is_dir()
        if self.eager:
            self.model, self.inputs = _eager(path)
        else:
            self.model, self.inputs = _exported(path, bool(options.get("trust", False)))

    @property
    def max_batch(self) -> int | None:
        return EAGER_BATCH if self.eager else super().max_batch

    @property
    def fixed_batch(self) -> int | None:
        return None if self.eager else super().fixed_batch

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        import torch

        tensors = as_tensors(arrays)
        with torch.no_grad():
            start = time.perf_counter()
            results = self.model(*tensors)
            seconds = time.perf_counter() - start
        return as_arrays(results), seconds


def _eager(folder: Path) -> tuple[Any, list[Spec] | None]:
    from safetensors.torch import load_file

    about = json.loads((folder / "model.json").read_text("utf-8"))
    target, where = about["factory"]["target"], about["factory"].get("folder")
    if where and Path(where).is_dir() and where not in sys.path:
        sys.path.insert(0, where)
    module_name, _, name = target.partition(":")
    with explained("model", f"the model's own code {target!r} cannot be used"):
        factory: Any = importlib.import_module(module_name)
        for part in name.split("."):
            factory = getattr(factory, part)
        arguments = about.get("arguments") or {}
        module = factory(**arguments) if isinstance(arguments, dict) else factory(*arguments)
    with explained("model", f"{folder.name}/weights.safetensors does not fit {target!r}"):
        module.load_state_dict(load_file(folder / "weights.safetensors"))
    specs = about.get("inputs")
    if not specs:
        return module.eval(), None
    return module.eval(), [
        Spec(spec["name"], (None, *spec["shape"][1:]), spec.get("dtype", "float32")) for spec in specs
    ]


def _exported(path: Path, trust: bool) -> tuple[Any, list[Spec]]:
    if not zipfile.is_zipfile(path):
        raise AgentError("model", f"{path.name} is not an exported program: not a zip archive")
    with zipfile.ZipFile(path) as archive:
        objects = [
            name
            for name in archive.namelist()
            if "/data/constants/" in name and name.rpartition("/")[2].startswith(("custom_obj", "opaque_obj"))
        ]
    if objects and not trust:
        raise AgentError(
            "model",
            f"{path.name} holds pickled objects ({objects[0]}), which can run any code; "
            "set the runtime's option 'trust' to load it all the same",
        )
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
    return program.module(), specs
