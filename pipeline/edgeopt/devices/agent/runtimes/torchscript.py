"""TorchScript: files for the lite interpreter (``.ptl``), and full archives."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import AgentError, refuse
from edgeopt_agent.session import ModelSession
from edgeopt_agent.torchside import as_arrays, as_tensors, limit_threads, names_of


class Session(ModelSession):
    """A TorchScript file, run with batch size 1: the file does not declare its input shapes.

    Option ``engine``: the quantized engine, which packs the weights; default ``qnnpack``, as on ARM.
    ``trust``: also load a file with operators that reach files or other processes.
    """

    requires = ("torch",)
    known_options = ("engine", "trust")

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        limit_threads(threads)
        import torch
        import torch.jit.mobile

        # Weights are packed for the engine while the model is loaded: it must be set before.
        torch.backends.quantized.engine = options.get("engine", "qnnpack")

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        if not zipfile.is_zipfile(path):
            raise AgentError("model", f"{path.name} is not a TorchScript archive")
        with zipfile.ZipFile(path) as archive:
            lite = any(name.endswith("/bytecode.pkl") for name in archive.namelist())
        if not options.get("trust", False):
            from edgeopt_untrusted import torch_files

            refuse(path.name, torch_files.findings_for_torch(path))
        import torch

        if lite:
            self.model: Any = torch.jit.mobile._load_for_lite_interpreter(os.fspath(path))
        else:
            self.model = torch.jit.load(os.fspath(path), map_location="cpu").eval()

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        import torch

        tensors = as_tensors(arrays)
        with torch.no_grad():
            start = time.perf_counter()
            results = self.model(*tensors)
            seconds = time.perf_counter() - start
        self.output_names = names_of(results)
        return as_arrays(results), seconds
