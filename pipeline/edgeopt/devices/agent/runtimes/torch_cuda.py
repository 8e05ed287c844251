"""PyTorch on an NVIDIA GPU, timed with CUDA events."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt_agent.cuda import chosen, gpu_memory_bytes, without_tf32
from edgeopt_agent.failure import AgentError
from edgeopt_agent.protocol import Measured
from edgeopt_agent.session import ModelSession, Spec
from edgeopt_agent.torchside import as_arrays, as_tensors, eager_module, exported_program, limit_threads

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
EAGER_BATCH = 32
DEVICE = "cuda"


class Session(ModelSession):
    """A folder (``model.json`` + ``weights.safetensors``), a ``.pt2`` exported program, or full TorchScript.

    Option ``precision``: ``fp32``, ``fp16`` or ``bf16``; weights, buffers and real inputs are cast before
    the clock runs, and fp32 is never rounded to TF32. ``compile``: run what ``torch.compile`` makes of
    it. ``trust``: load an exported program although it holds pickled objects, which can run any code.

    The seconds are those between two CUDA events around the call. Where a model is so small that the
    GPU waits for Python, that wait is part of them.
    """

    requires = ("torch",)
    known_options = ("precision", "compile", "trust")
    on_gpu = True

    @classmethod
    def version(cls) -> str | None:
        """Version of torch, ``None`` also where it is built for the CPU alone."""
        found = super().version()
        return None if found is None or found.endswith("+cpu") else found

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        chosen(options, "precision", tuple(DTYPES))
        chosen(options, "compile", (False, True))
        if not options.get("trust", False):
            # Reading an exported program unpickles tensors with all protection off otherwise.
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        without_tf32()
        limit_threads(threads)
        import torch

        if torch.version.cuda is None:
            raise AgentError("runtime", f"torch {torch.__version__} is built without CUDA")
        if not torch.cuda.is_available():
            raise AgentError("runtime", f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU")

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.precision = str(chosen(options, "precision", tuple(DTYPES)))
        self.compile = bool(chosen(options, "compile", (False, True)))
        self.eager = path.is_dir()
        module, self.inputs = load(path, bool(options.get("trust", False)), DEVICE)
        self.model = cast(module, DEVICE, self.precision)
        if self.compile:
            self.model = compiled(self.model, path.name)

    @property
    def max_batch(self) -> int | None:
        return EAGER_BATCH if self.eager else super().max_batch

    @property
    def fixed_batch(self) -> int | None:
        return None if self.eager else super().fixed_batch

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        import torch

        tensors = lowered(as_tensors(arrays), DEVICE, self.precision)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.no_grad():
            torch.cuda.synchronize()
            start.record()
            results = self.model(*tensors)
            end.record()
            torch.cuda.synchronize()
        return raised(as_arrays(results), self.precision), start.elapsed_time(end) / 1e3

    def measurements(self) -> dict[str, Measured]:
        """The most GPU memory that tensors took at once; else what the driver lists for the process."""
        import torch

        held = torch.cuda.max_memory_allocated() or gpu_memory_bytes()
        return {"gpu_memory_bytes": {"value": held, "unit": "bytes"}} if held else {}

    def notes(self) -> list[str]:
        import torch

        how = "torch.compile" if self.compile else "eager"
        name = torch.cuda.get_device_name()
        return [f"{name}, CUDA {torch.version.cuda}, {self.precision} without TF32, {how}, CUDA events"]


def load(path: Path, trust: bool, device: str) -> tuple[Any, list[Spec] | None]:
    """A module on ``device`` and what it takes, ``None`` where the file does not tell.

    Raises:
        AgentError: it is a file of the lite interpreter, or nothing that torch can load.
    """
    if path.is_dir():
        return eager_module(path)
    import torch

    if not zipfile.is_zipfile(path):
        raise AgentError("model", f"{path.name} is neither TorchScript nor an exported program: no archive")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/bytecode.pkl") for name in names):
        raise AgentError("model", f"{path.name} is for the lite interpreter, which runs on the CPU alone")
    if any(name.endswith("/constants.pkl") for name in names):
        return torch.jit.load(os.fspath(path), map_location=device).eval(), None
    program, specs = exported_program(path, trust)
    from torch.export.passes import move_to_device_pass

    # The graph itself names devices, where it makes tensors; moving the module alone would leave them.
    return move_to_device_pass(program, device).module(), specs


def cast(module: Any, device: str, precision: str) -> Any:
    """A module with its weights and buffers on ``device``; real ones get the type of ``precision``."""
    import torch

    if precision == "fp32":
        return module.to(device)
    return module.to(device, getattr(torch, DTYPES[precision]))


def lowered(tensors: list[Any], device: str, precision: str) -> list[Any]:
    """Inputs on ``device``; real ones get the type of ``precision``, the others keep theirs."""
    import torch

    if precision == "fp32":
        return [tensor.to(device) for tensor in tensors]
    wanted = getattr(torch, DTYPES[precision])
    return [tensor.to(device, wanted if tensor.is_floating_point() else None) for tensor in tensors]


def raised(arrays: list[Any], precision: str) -> list[Any]:
    """Outputs as float32 where the model was brought to 16 bits, so that all precisions compare."""
    if precision == "fp32":
        return arrays
    return [array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays]


def compiled(module: Any, name: str) -> Any:
    """What ``torch.compile`` makes of a module; it compiles in the first run.

    Raises:
        AgentError: TorchScript, which it does not take.
    """
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        raise AgentError("model", f"{name} is TorchScript, which torch.compile does not take: compile: false")
    return torch.compile(module)
