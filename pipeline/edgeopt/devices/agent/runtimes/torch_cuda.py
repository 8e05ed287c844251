"""PyTorch on an NVIDIA GPU, timed with CUDA events."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from edgeopt_agent.cuda import gpu_memory_bytes, option_value, without_tf32
from edgeopt_agent.failure import AgentError, refuse
from edgeopt_agent.protocol import Measured
from edgeopt_agent.session import ModelSession, Spec
from edgeopt_agent.torchside import (
    as_arrays,
    as_tensors,
    eager_module,
    exported_program,
    limit_threads,
    names_of,
)

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
EAGER_BATCH = 32
DEVICE = "cuda"


class Session(ModelSession):
    """A folder (``model.json`` + ``weights.safetensors``), a ``.pt2`` exported program, or full TorchScript.

    Option ``precision``: ``fp32``, ``fp16`` or ``bf16``; weights, buffers and floating-point inputs are cast
    before timing starts, and fp32 is never rounded to TF32. ``compile``: use ``torch.compile``. ``trust``:
    also load a file that contains more than a network: it can run any code.

    Latency is the time between two CUDA events around the call. If a model is so small that the GPU waits for
    Python to launch kernels, that wait is included.
    """

    requires = ("torch",)
    known_options = ("precision", "compile", "trust")
    on_gpu = True

    @classmethod
    def version(cls) -> str | None:
        """Version of torch; ``None`` also for a CPU-only build."""
        version = super().version()
        return None if version is None or version.endswith("+cpu") else version

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        option_value(options, "precision", tuple(DTYPES))
        option_value(options, "compile", (False, True))
        if not options.get("trust", False):
            # Otherwise torch.export.load unpickles tensors without the weights_only restriction.
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        without_tf32()
        limit_threads(threads)
        import torch

        if torch.version.cuda is None:
            raise AgentError("runtime", f"torch {torch.__version__} is built without CUDA")
        if not torch.cuda.is_available():
            raise AgentError("runtime", f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU")

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.precision = str(option_value(options, "precision", tuple(DTYPES)))
        self.compile = bool(option_value(options, "compile", (False, True)))
        self.eager = path.is_dir()
        module, self.inputs = load(path, bool(options.get("trust", False)), DEVICE)
        self.model = cast_module(module, DEVICE, self.precision)
        if self.compile:
            self.model = compile_module(self.model, path.name)

    @property
    def max_batch(self) -> int | None:
        return EAGER_BATCH if self.eager else super().max_batch

    @property
    def fixed_batch(self) -> int | None:
        return None if self.eager else super().fixed_batch

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        import torch

        tensors = cast_inputs(as_tensors(arrays), DEVICE, self.precision)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.no_grad():
            torch.cuda.synchronize()
            start.record()
            results = self.model(*tensors)
            end.record()
            torch.cuda.synchronize()
        self.output_names = names_of(results)
        return widen_outputs(as_arrays(results), self.precision), start.elapsed_time(end) / 1e3

    def measurements(self) -> dict[str, Measured]:
        """Peak GPU memory of PyTorch's tensors; if not tracked, the driver's value for the process."""
        import torch

        used = torch.cuda.max_memory_allocated() or gpu_memory_bytes()
        return {"gpu_memory_bytes": {"value": used, "unit": "bytes"}} if used else {}

    def notes(self) -> list[str]:
        import torch

        mode = "torch.compile" if self.compile else "eager"
        name = torch.cuda.get_device_name()
        return [f"{name}, CUDA {torch.version.cuda}, {self.precision} without TF32, {mode}, CUDA events"]


def load(path: Path, trust: bool, device: str) -> tuple[Any, list[Spec] | None]:
    """Load a module on ``device``; returns it and its inputs, ``None`` if the file does not declare them.

    Raises:
        AgentError: kind ``model``: a file for the lite interpreter, or not a format that torch loads.
    """
    if path.is_dir():
        return eager_module(path)
    import torch

    if not zipfile.is_zipfile(path):
        raise AgentError("model", f"{path.name} is neither TorchScript nor an exported program: no zip file")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/bytecode.pkl") for name in names):
        raise AgentError("model", f"{path.name} is for the lite interpreter, which runs only on the CPU")
    if any(name.endswith("/constants.pkl") for name in names):
        if not trust:
            from edgeopt_untrusted import torch_files

            refuse(path.name, torch_files.findings_for_torch(path))
        return torch.jit.load(os.fspath(path), map_location=device).eval(), None
    program, specs = exported_program(path, trust)
    from torch.export.passes import move_to_device_pass

    # Nodes that create tensors store their device in the graph: module.to() would not change it.
    return move_to_device_pass(program, device).module(), specs


def cast_module(module: Any, device: str, precision: str) -> Any:
    """Move a module to ``device`` and cast its floating-point weights and buffers to ``precision``."""
    import torch

    if precision == "fp32":
        return module.to(device)
    return module.to(device, getattr(torch, DTYPES[precision]))


def cast_inputs(tensors: list[Any], device: str, precision: str) -> list[Any]:
    """Move inputs to ``device`` and cast the floating-point ones to ``precision``."""
    import torch

    if precision == "fp32":
        return [tensor.to(device) for tensor in tensors]
    dtype = getattr(torch, DTYPES[precision])
    return [tensor.to(device, dtype if tensor.is_floating_point() else None) for tensor in tensors]


def widen_outputs(arrays: list[Any], precision: str) -> list[Any]:
    """Convert the outputs of a 16-bit model to float32, so that all precisions are comparable."""
    if precision == "fp32":
        return arrays
    return [array.astype("float32") if array.dtype == "float16" else array for array in arrays]


def compile_module(module: Any, name: str) -> Any:
    """Apply ``torch.compile``; compilation happens during the first run.

    Raises:
        AgentError: kind ``model``: TorchScript, which ``torch.compile`` does not support.
    """
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        raise AgentError("model", f"torch.compile does not support TorchScript ({name}): set compile: false")
    return torch.compile(module)
