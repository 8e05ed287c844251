"""The outcome of one job: outputs, latencies and the runtime's report."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.config.text import MAX_REASON_CHARS, printable
from edgeopt.errors import DeviceError
from edgeopt.evaluation.samples import dequantize
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Array, Model
from edgeopt.results import Scalar
from edgeopt.run.measuring.protocol import JobResult, LayerInfo, Measured, TimedInterval, read_response

RESULT = "result.json"
OUTPUTS, TIMES, LAYERS, COMPILED = "outputs.npz", "times.npz", "layers.npz", "compiled.bin"
UNREADABLE = (OSError, *MALFORMED)
"""Exceptions from reading arrays of a broken or malicious device."""


class Outcome(NamedTuple):
    """The agent's response to one job; ``error`` is the reason if it failed."""

    runtime: str
    error: str = ""
    outputs: tuple[Array, ...] = ()
    times: Mapping[str, NDArray[np.float64]] = MappingProxyType({})
    layers: tuple[Array, ...] = ()
    """Every operator's outputs for the requested samples, described by ``layer_infos``."""
    result: JobResult | None = None
    cached: bool = False
    compiled: Path | None = None
    unreachable: bool = False
    lost: bool = False
    """Whether ``error`` is the loss of the device: measured again, the model may run."""
    extra_notes: tuple[str, ...] = ()
    """Notes in addition to those of the runtime."""

    @property
    def notes(self) -> tuple[str, ...]:
        return (*(self.result["notes"] if self.result else ()), *self.extra_notes)

    @property
    def samples(self) -> int:
        """How many samples were run. Not rows of an output: not every one has a batch axis."""
        return self.result["n"] if self.result else 0

    @property
    def details(self) -> tuple[dict[str, Scalar], ...]:
        """One row per operator, if the runtime reports them."""
        return tuple(self.result["details"]) if self.result else ()

    @property
    def measurements(self) -> dict[str, Measured]:
        """Runtime-specific measurements."""
        return self.result["measurements"] if self.result else {}

    @property
    def non_finite(self) -> int:
        """Output values that are NaN or infinite."""
        return self.result["non_finite"] if self.result else 0

    @property
    def output_scales(self) -> tuple[float | None, ...]:
        """Quantization step of each output; None for a float output."""
        return tuple(self.result["output_scales"]) if self.result else ()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs as the runtime reports them; empty if it does not."""
        return tuple(spec["name"] for spec in (self.result and self.result["outputs"]) or ())

    @property
    def layer_infos(self) -> tuple[LayerInfo, ...]:
        return tuple(self.result["layers"]) if self.result else ()

    @property
    def intervals(self) -> tuple[TimedInterval, ...]:
        """The machine's state during the latency measurements."""
        return tuple(self.result["conditions"]) if self.result else ()


def files_of_result(result: JobResult, *, timed: bool) -> list[str]:
    """Names of the files that a job wrote; fixed, because a path in a response cannot be trusted."""
    if not result["executed"]:
        return [COMPILED] if result["compiled"] else []
    names = [OUTPUTS, TIMES] if timed else [OUTPUTS]
    return [*names, LAYERS] if result["layers"] else names


def read_outcome(runtime: str, folder: Path, model: Model, device: str, *, cached: bool) -> Outcome:
    """Read the outcome of a job from the files in ``folder``.

    Raises:
        DeviceError: the response or an array is malformed.
    """
    result, failure = read_response((folder / RESULT).read_bytes(), device)
    if result is None:
        return Outcome(runtime, printable(failure["error"], MAX_REASON_CHARS) if failure else "")
    try:
        outputs = _arrays(folder / OUTPUTS, "output")
        layers, times = _arrays(folder / LAYERS, "layer"), _times(folder / TIMES)
    except UNREADABLE as error:
        raise DeviceError(f"device {device} returned malformed arrays: {error}") from error
    if len(outputs) == len(model.outputs):
        # Formats without quantization parameters of their outputs, such as ONNX, return raw integers.
        outputs = tuple(dequantize(*pair) for pair in zip(outputs, model.outputs, strict=True))
    compiled = folder / COMPILED
    return Outcome(
        runtime=f"{runtime} {result['runtime']['version'] or ''}".strip(),
        outputs=outputs,
        times=times,
        layers=layers,
        result=result,
        cached=cached,
        compiled=compiled if compiled.exists() else None,
    )


def _times(path: Path) -> dict[str, NDArray[np.float64]]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _arrays(path: Path, stem: str) -> tuple[Array, ...]:
    if not path.exists():
        return ()
    with np.load(path, allow_pickle=False) as archive:
        return tuple(archive[f"{stem}_{index}"] for index in range(len(archive.files)))
