"""The agent's interface to a runtime: load a model, run it, and time the run.

A runtime is a file in ``runtimes/`` with one class ``Session``; it is named after its file.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from edgeopt_agent.failure import AgentError, explained
from edgeopt_agent.protocol import Measured


class Spec(NamedTuple):
    """An input or output. ``shape`` includes the batch axis; ``None`` is a dynamic dimension."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


class Layer(NamedTuple):
    """The output of one operator, as the model stores it."""

    name: str
    operator: str
    scale: float | None
    values: Any


TRUST = "trust"
"""The option that a job sets, and no device: whether to load a model that contains more than a network."""


class ModelSession:
    """A loaded model. Subclasses are named ``Session`` and override ``__init__`` and ``invoke``.

    ``inputs`` is ``None`` if the file does not declare its inputs. ``requires`` names the
    distributions that contain the runtime; the first one's version is the runtime's.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    known_options: ClassVar[tuple[str, ...]] = ()
    executes: ClassVar[bool] = True
    """False for a compiler for a device: it does not run the model and returns only ``measurements``."""

    on_gpu: ClassVar[bool] = False
    """Whether to record the clocks of the GPUs with the measurements."""

    inputs: list[Spec] | None = None
    outputs: list[Spec] | None = None
    output_names: Sequence[str] = ()
    """Names in the order of the results, set no later than by the first ``invoke``; empty if unknown."""

    @classmethod
    def version(cls) -> str | None:
        """Version of the installed runtime, ``None`` if any part is missing. Imports nothing."""
        try:
            versions = [importlib.metadata.version(name) for name in cls.requires]
        except importlib.metadata.PackageNotFoundError:
            return None
        return versions[0] if versions else None

    @classmethod
    def prepare(cls, path: Path, threads: int, options: dict[str, Any]) -> None:
        """Import the runtime that ``path`` needs and limit its threads, without loading the model."""

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        """Load the model; may raise any exception of the runtime."""

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        """Run once on inputs of the model's dtypes.

        Returns the model's raw outputs, and the seconds of the run alone by the session's clock, without
        copies in and out of Python if the runtime can separate them.
        """
        raise NotImplementedError

    def measurements(self) -> dict[str, Measured]:
        """Runtime-specific measurements after the runs: ``{name: {"value": number, "unit": unit}}``."""
        return {}

    def compiled(self) -> Path | None:
        """The compiled file for the device, if the runtime is a compiler."""
        return None

    def details(self) -> list[dict[str, Any]]:
        """One row per layer, if the runtime reports them."""
        return []

    def output_scales(self) -> list[float | None]:
        """The quantization step of each output, also of a float output that the model dequantizes."""
        return [spec.scale for spec in self.outputs or ()]

    def layers(self, arrays: list[Any]) -> list[Layer] | None:
        """Every operator's outputs for one run, in execution order; ``None`` if not exposed."""
        return None

    def notes(self) -> list[str]:
        """Caveats of the measurements, such as that they are estimates."""
        return []

    @property
    def max_batch(self) -> int | None:
        """Samples that fit in one run; ``None`` for any number."""
        if self.inputs is None:
            return 1
        sizes = {spec.shape[0] if spec.shape else 1 for spec in self.inputs}
        fixed = [size for size in sizes if size is not None]
        return min(fixed) if fixed else None

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that every run must have, if the file fixes it."""
        return self.max_batch

    def run(self, arrays: list[Any]) -> tuple[list[Any], float]:
        """``invoke``, with real inputs quantized and quantized outputs dequantized."""
        if self.inputs is not None:
            arrays = [fit(array, spec) for array, spec in zip(arrays, self.inputs)]
            arrays = [array if spec.shape else array.reshape(()) for array, spec in zip(arrays, self.inputs)]
        results, seconds = self.invoke(arrays)
        if self.outputs is None:
            names = list(self.output_names)
            if len(names) != len(results):
                names = [f"output_{index}" for index in range(len(results))]
            self.outputs = [
                Spec(name, tuple(value.shape), str(value.dtype)) for name, value in zip(names, results)
            ]
        return [dequantize(value, spec) for value, spec in zip(results, self.outputs)], seconds


def fit(array: Any, spec: Spec) -> Any:
    """Convert an array to the dtype of an input: quantize real numbers, widen or range-check others.

    Values that already have a quantized input's dtype are taken as quantized.

    Raises:
        AgentError: kind ``input``: the conversion would lose values.
    """
    import numpy as np

    target = np.dtype(spec.dtype)
    if array.dtype == target:
        return np.ascontiguousarray(array)
    if spec.scale:
        return quantize(array, spec)
    if np.issubdtype(target, np.floating) or np.can_cast(array.dtype, target):
        return np.ascontiguousarray(array, dtype=target)
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(target, np.integer):
        limits = np.iinfo(target)
        if array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max):
            return np.ascontiguousarray(array, dtype=target)
    raise AgentError("input", f"input {spec.name!r} has dtype {target}, but the data has {array.dtype}")


def quantize(array: Any, spec: Spec) -> Any:
    """Real to stored numbers: divide by the scale, round half to even, add the zero point, clip."""
    import numpy as np

    real = np.asarray(array, np.float32)
    if not np.isfinite(real).all():
        raise AgentError("input", f"the data for the quantized input {spec.name!r} contains NaN or infinity")
    limits = np.iinfo(spec.dtype)
    stored = np.rint(real / np.float32(spec.scale)) + np.float32(spec.zero_point or 0)
    return np.clip(stored, limits.min, limits.max).astype(spec.dtype)


def dequantize(array: Any, spec: Spec) -> Any:
    """Stored integers to the real numbers they represent, as float32; other arrays are unchanged."""
    import numpy as np

    if not spec.scale or not np.issubdtype(array.dtype, np.integer):
        return array
    return (array.astype(np.float32) - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)


def runtime_names() -> list[str]:
    """Names of this agent's runtimes: the names of their files."""
    package = importlib.import_module("edgeopt_agent.runtimes")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def find_runtime(name: str) -> type[ModelSession]:
    """The session class of a runtime, without importing the runtime itself."""
    known = runtime_names()
    if name not in known:
        raise AgentError("runtime", f"this agent has no runtime {name!r}; it has: {', '.join(known)}")
    kind: type[ModelSession] = importlib.import_module(f"edgeopt_agent.runtimes.{name}").Session
    return kind


def prepare_runtime(name: str, path: Path, threads: int, options: dict[str, Any]) -> type[ModelSession]:
    """Find a runtime, check the options, and import it.

    Raises:
        AgentError: kind ``runtime``: it is not installed, or an option is unknown.
    """
    kind = find_runtime(name)
    unknown = sorted(set(options) - set(kind.known_options))
    if unknown:
        known = ", ".join(name for name in kind.known_options if name != TRUST) or "none"
        raise AgentError("runtime", f"runtime {name!r} has no option {unknown[0]!r}; known: {known}")
    try:
        with explained("runtime", f"runtime {name!r} is unusable"):
            kind.prepare(path, threads, options)
    except AgentError as error:
        if kind.version() is not None or error.__cause__ is None:
            raise  # installed, or the runtime's own error, which is more specific
        packages = " ".join(kind.requires)
        message = f"runtime {name!r} needs {packages}, which is not installed for {sys.executable}"
        raise AgentError("runtime", message) from error
    return kind
