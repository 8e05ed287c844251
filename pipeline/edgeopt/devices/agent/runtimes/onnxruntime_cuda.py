"""ONNX Runtime on an NVIDIA GPU, with the CUDA or the TensorRT execution provider."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from edgeopt_agent.cuda import gpu_memory_bytes, gpus, option_value, without_tf32
from edgeopt_agent.failure import AgentError, refuse
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
    """A ``.onnx`` file; inputs and outputs are bound to GPU memory, and their copies are not timed.

    Option ``provider``: ``cuda`` or ``tensorrt``. ``precision``: ``fp32`` (never rounded to TF32), or
    ``fp16``, to which TensorRT casts the model; the CUDA provider runs a file as written. ``cpu_nodes``:
    ``false`` rejects a file if any of its nodes would run on the CPU.

    ONNX Runtime does not expose CUDA events: the host clock is used, and the GPU is synchronized before and
    after the run.
    """

    requires = ("onnxruntime-gpu",)
    known_options = ("provider", "precision", "cpu_nodes")
    on_gpu = True

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        provider_settings(options)
        without_tf32()
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # otherwise it sends usage data of every session
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        if hasattr(onnxruntime, "preload_dlls"):
            # CUDA and cuDNN may be pip packages, which are not on the dynamic linker's search path.
            onnxruntime.preload_dlls()
        check_available(provider_of(options), onnxruntime.get_available_providers(), onnxruntime.__version__)

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        import onnxruntime

        from edgeopt_untrusted import onnx_files

        refuse(path.name, onnx_files.findings(path), "save it as a single file")
        self.provider = provider_of(options)
        self.precision = str(option_value(options, "precision", PRECISIONS))
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        session.inter_op_num_threads = 1
        session.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        if not option_value(options, "cpu_nodes", (True, False)):
            session.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self.model = onnxruntime.InferenceSession(str(path), session, providers=provider_settings(options))
        check_active(self.provider, self.model.get_providers())
        # Otherwise a run that fails on the GPU is repeated on the CPU.
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
        """The driver's GPU memory usage of this process: model, arena and CUDA context."""
        used = gpu_memory_bytes()
        return {"gpu_memory_bytes": {"value": used, "unit": "bytes"}} if used else {}

    def notes(self) -> list[str]:
        listed = gpus()
        name = listed[0]["name"] if listed else "GPU"
        return [f"{name}, {self.provider}, {self.precision} without TF32, host clock, synchronized"]


def provider_of(options: dict[str, Any]) -> str:
    """The execution provider selected by the options."""
    return PROVIDERS[option_value(options, "provider", tuple(PROVIDERS))]


def provider_settings(options: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Execution providers by descending priority, each with its options.

    Raises:
        AgentError: kind ``runtime``: an option is invalid, or the provider does not support the precision.
    """
    option_value(options, "cpu_nodes", (True, False))
    precision = option_value(options, "precision", PRECISIONS)
    cuda = (PROVIDERS["cuda"], {"device_id": "0", "use_tf32": "0"})
    if provider_of(options) == PROVIDERS["cuda"]:
        if precision != "fp32":
            raise AgentError(
                "runtime",
                f"the CUDA provider runs a file as written and cannot convert it to {precision}: "
                "set provider: tensorrt, or use a file of that precision",
            )
        return [cuda]
    half = "1" if precision == "fp16" else "0"
    return [(PROVIDERS["tensorrt"], {"device_id": "0", "trt_fp16_enable": half}), cuda]


def check_available(provider: str, available: list[str], version: str) -> None:
    """Check that the installed ONNX Runtime was built with the provider.

    Raises:
        AgentError: kind ``runtime``: it was not.
    """
    if provider not in available:
        raise AgentError(
            "runtime",
            f"onnxruntime {version} has no {provider}; it has: {', '.join(available) or 'none'}; "
            "install onnxruntime-gpu, and uninstall onnxruntime",
        )


def check_active(provider: str, active: list[str]) -> None:
    """Check that a session uses the provider: ONNX Runtime falls back to another one without an error.

    Raises:
        AgentError: kind ``runtime``: it does not.
    """
    if provider not in active:
        raise AgentError(
            "runtime",
            f"{provider} could not be started and ONNX Runtime fell back to {', '.join(active) or 'none'}: "
            "its CUDA, cuDNN or TensorRT libraries are missing or incompatible with the driver",
        )


def _spec(value: Any) -> Spec:
    dtype = DTYPES.get(value.type) or value.type.replace("tensor(", "").replace(")", "")
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return Spec(value.name, shape, dtype)
