"""PyTorch: an eager module, built by its own code and loaded with stored weights, or an exported program."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any

from edgeopt_agent.session import ModelSession
from edgeopt_agent.torchside import (
    as_arrays,
    as_tensors,
    eager_module,
    exported_program,
    limit_threads,
    names_of,
)

EAGER_BATCH = 32


class Session(ModelSession):
    """A folder (``model.json`` + ``weights.safetensors``), or a ``.pt2`` exported program.

    Option ``trust``: also load an exported program that contains more than a network: it can run any code.
    """

    requires = ("torch",)
    known_options = ("trust",)

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        if not options.get("trust", False):
            # Otherwise torch.export.load unpickles tensors without the weights_only restriction.
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        limit_threads(threads)
        importlib.import_module("safetensors.torch" if path.is_dir() else "torch.export")

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.eager = path.is_dir()
        if self.eager:
            self.model, self.inputs = eager_module(path)
        else:
            program, self.inputs = exported_program(path, bool(options.get("trust", False)))
            self.model = program.module()

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
        self.output_names = names_of(results)
        return as_arrays(results), seconds
