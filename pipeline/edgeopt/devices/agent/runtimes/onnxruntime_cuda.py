"""ONNX Runtime on an NVIDIA GPU, by its CUDA or its TensorRT provider."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from edgeopt_agent.cuda import chosen, gpu_memory_bytes, gpus, without_tf32
from edgeopt_agent.failure import AgentError
from edgeopt_agent.protocol import Measured
from edgeopt_agent.session import ModelSession, Spec

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
PRECISIONS = ("fp32", "fp16")
DEVICE = "cuda"
DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
}


class Session(ModelSession):
    """A ``.onnx`` file; inputs and outputs are bound to GPU memory, and copied outside of the clock.

    Option ``provider``: ``cuda`` or ``tensorrt``. ``precision``: ``fp32`` (never rounded to TF32), or
    ``fp16`` with TensorRT, which casts by itself; the CUDA provider runs a file as it is written.
    ``cpu_nodes``: false refuses a file of which any node would run on the CPU.

    ONNX Runtime gives out no CUDA events: the seconds are the host's, from an idle GPU to one
    that has nothing left to do.
    """

    requires = ("onnxruntime-gpu",)
    known_options = ("provider", "precision", "cpu_nodes")
    on_gpu = True

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        settings(options)
        without_tf32()
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it reports every session to its maker otherwise
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        if hasattr(onnxruntime, "preload_dlls"):
            # CUDA and cuDNN may come from packages of pip, where the loader of the system does not look.
            onnxruntime.preload_dlls()
        present(asked(options), onnxruntime.get_available_providers(), onnxruntime.__version__)

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        import onnxruntime

        self.provider = asked(options)
        self.precision = str(chosen(options, "precision", PRECISIONS))
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        session.inter_op_num_threads = 1
        session.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        if not chosen(options, "cpu_nodes", (True, False)):
            session.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self.model = onnxruntime.InferenceSession(str(path), session, providers=settings(options))
        in_use(self.provider, self.model.get_providers())
        # Otherwise a run that fails on the GPU is begun anew on the CPU.
        self.model.disable_fallback()
        self.inputs = [_spec(value) for value in self.model.get_inputs()]
        self.outputs = [_spec(value) for value in self.model.get_outputs()]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        import onnxruntime

        binding = self.model.io_binding()
        for spec, array in zip(self.inputs or (), arrays):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, DEVICE, 0)
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.outputs or ():
            binding.bind_output(spec.name, DEVICE, 0)
        binding.synchronize_inputs()
        start = time.perf_counter()
        self.model.run_with_iobinding(binding)
        binding.synchronize_outputs()
        seconds = time.perf_counter() - start
        return binding.copy_outputs_to_cpu(), seconds

    def measurements(self) -> dict[str, Measured]:
        """What the driver lists for this process: the model, its arena and the CUDA context."""
        held = gpu_memory_bytes()
        return {"gpu_memory_bytes": {"value": held, "unit": "bytes"}} if held else {}

    def notes(self) -> list[str]:
        found = gpus()
        name = found[0]["name"] if found else "GPU"
        return [f"{name}, {self.provider}, {self.precision} without TF32, host clock, synchronised"]


def asked(options: dict[str, Any]) -> str:
    """The provider that the options name."""
    return PROVIDERS[chosen(options, "provider", tuple(PROVIDERS))]


def settings(options: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Providers in the order in which nodes are offered to them, each with its options.

    Raises:
        AgentError: kind ``runtime``, an option that is wrong, or a precision that the provider cannot make.
    """
    chosen(options, "cpu_nodes", (True, False))
    precision = chosen(options, "precision", PRECISIONS)
    cuda = (PROVIDERS["cuda"], {"device_id": "0", "use_tf32": "0"})
    if asked(options) == PROVIDERS["cuda"]:
        if precision != "fp32":
            raise AgentError(
                "runtime",
                f"the CUDA provider runs a file as it is written and cannot make it {precision}: "
                "set provider: tensorrt, or give a file of that precision",
            )
        return [cuda]
    half = "1" if precision == "fp16" else "0"
    return [(PROVIDERS["tensorrt"], {"device_id": "0", "trt_fp16_enable": half}), cuda]


def present(provider: str, available: list[str], version: str) -> None:
    """Hold the provider against those that the installed ONNX Runtime was built with.

    Raises:
        AgentError: kind ``runtime``, when it is not among them.
    """
    if provider not in available:
        raise AgentError(
            "runtime",
            f"onnxruntime {version} has no {provider}; it has: {', '.join(available) or 'none'}; "
            "install onnxruntime-gpu, and no onnxruntime beside it",
        )


def in_use(provider: str, used: list[str]) -> None:
    """Refuse a session that was quietly made for another provider.

    Raises:
        AgentError: kind ``runtime``, when the provider that was asked for is not in use.
    """
    if provider not in used:
        raise AgentError(
            "runtime",
            f"{provider} could not be started and ONNX Runtime fell back to {', '.join(used) or 'none'}: "
            "its CUDA, cuDNN or TensorRT libraries are missing or do not fit the driver",
        )


def _spec(value: Any) -> Spec:
    dtype = DTYPES.get(value.type) or value.type.replace("tensor(", "").replace(")", "")
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return Spec(value.name, shape, dtype)
