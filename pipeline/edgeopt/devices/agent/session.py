"""What a runtime looks like to the agent: load a model, run it, tell how long that took.

A runtime is one file in ``runtimes/`` with one class ``Session``; its file name is its name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from edgeopt_agent.failure import AgentError, explained


class Spec(NamedTuple):
    """One input or output. ``shape`` includes the batch axis; ``None`` is a free dimension."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


class Layer(NamedTuple):
    """What one operator of a model gave, as the model stores it."""

    name: str
    operator: str
    scale: float | None
    values: Any


class ModelSession:
    """One loaded model. Subclasses are called ``Session`` and override ``__init__`` and ``invoke``.

    ``inputs`` is ``None`` where the file does not tell what it takes. ``requires`` names the
    distributions that bring the runtime, the one whose version counts first.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    known_options: ClassVar[tuple[str, ...]] = ()
    executes: ClassVar[bool] = True
    """False for a compiler for a device: it looks at the model, and ``measurements`` is all it gives."""

    on_gpu: ClassVar[bool] = False
    """Whether the clocks of the GPUs belong to what was measured."""

    inputs: list[Spec] | None = None
    outputs: list[Spec] | None = None

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
        """Load the model; may raise whatever the runtime raises."""

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        """Run once on inputs of the model's own dtypes.

        Returns the outputs as the model gives them, and the seconds the run alone took by the
        session's own clock, without copies in and out of Python where the runtime lets these apart.
        """
        raise NotImplementedError

    def measurements(self) -> dict[str, dict[str, Any]]:
        """What only this runtime can tell, after the runs: ``{name: {"value": number, "unit": unit}}``."""
        return {}

    def compiled(self) -> Path | None:
        """The file made of the model for the device, where the runtime is a compiler."""
        return None

    def details(self) -> list[dict[str, Any]]:
        """One row per layer, where the runtime tells."""
        return []

    def output_scales(self) -> list[float | None]:
        """The step of each output, also of a real one that the model makes of stored integers at its end."""
        return [spec.scale for spec in self.outputs or ()]

    def layers(self, arrays: list[Any]) -> list[Layer] | None:
        """What every operator gives for one run, in the order of execution; ``None`` if it is not told."""
        return None

    def notes(self) -> list[str]:
        """What must stand beside the figures, such as that they are estimates."""
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
        """The number of samples every run must have, if the file fixes it."""
        return self.max_batch

    def run(self, arrays: list[Any]) -> tuple[list[Any], float]:
        """``invoke``, with quantized inputs made from real numbers and quantized outputs turned back."""
        if self.inputs is not None:
            arrays = [fit(array, spec) for array, spec in zip(arrays, self.inputs)]
        results, seconds = self.invoke(arrays)
        if self.outputs is None:
            self.outputs = [
                Spec(f"output_{index}", tuple(value.shape), str(value.dtype))
                for index, value in enumerate(results)
            ]
        return [dequantize(value, spec) for value, spec in zip(results, self.outputs)], seconds


def fit(array: Any, spec: Spec) -> Any:
    """Give an array the dtype of an input: quantize real numbers, widen or check plain ones.

    Values of a quantized input's own dtype are taken as already quantized.

    Raises:
        AgentError: kind ``input``, when values would be lost.
    """
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
    raise AgentError("input", f"input {spec.name!r} takes {target} but the data are {array.dtype}")


def quantize(array: Any, spec: Spec) -> Any:
    """Real numbers to stored ones: divide by the scale, round half to even, add the zero point, clip."""
    real = np.asarray(array, np.float32)
    if not np.isfinite(real).all():
        raise AgentError("input", f"the data for the quantized input {spec.name!r} hold NaN or infinity")
    limits = np.iinfo(spec.dtype)
    stored = np.rint(real / np.float32(spec.scale)) + np.float32(spec.zero_point or 0)
    return np.clip(stored, limits.min, limits.max).astype(spec.dtype)


def dequantize(array: Any, spec: Spec) -> Any:
    """Stored integers to the real numbers they stand for, float32; anything else stays as it is."""
    if not spec.scale or not np.issubdtype(array.dtype, np.integer):
        return array
    return (array.astype(np.float32) - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)


def runtime_names() -> list[str]:
    """All runtimes of this agent, by the names of their files."""
    package = importlib.import_module("edgeopt_agent.runtimes")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def find_runtime(name: str) -> type[ModelSession]:
    """The session class of a runtime; the runtime itself is not imported yet."""
    known = runtime_names()
    if name not in known:
        raise AgentError("runtime", f"this agent has no runtime {name!r}; it has: {', '.join(known)}")
    found: type[ModelSession] = importlib.import_module(f"edgeopt_agent.runtimes.{name}").Session
    return found


def prepare_runtime(name: str, path: Path, threads: int, options: dict[str, Any]) -> type[ModelSession]:
    """Find a runtime, check what it is asked for, and import it.

    Raises:
        AgentError: kind ``runtime``, when it is not installed or does not know an option.
    """
    kind = find_runtime(name)
    unknown = sorted(set(options) - set(kind.known_options))
    if unknown:
        known = ", ".join(kind.known_options) or "none"
        raise AgentError("runtime", f"runtime {name!r} has no option {unknown[0]!r}; known: {known}")
    try:
        with explained("runtime", f"runtime {name!r} cannot be used"):
            kind.prepare(path, threads, options)
    except AgentError as error:
        if kind.version() is not None or error.__cause__ is None:
            raise  # also what the runtime itself has to say, which tells more
        packages = " ".join(kind.requires)
        message = f"runtime {name!r} needs {packages}, which is not installed for {sys.executable}"
        raise AgentError("runtime", message) from error
    return kind
