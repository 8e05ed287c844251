"""What came of one job: outputs, times, and what the runtime said beside them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DeviceError
from edgeopt.evaluation.samples import dequantize
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import Array, Model
from edgeopt.results import Scalar
from edgeopt.run.protocol import JobResult, LayerInfo, Measured, Spell, read_answer

RESULT = "result.json"
OUTPUTS, TIMES, LAYERS, COMPILED = "outputs.npz", "times.npz", "layers.npz", "compiled.bin"
UNREADABLE = (OSError, *MALFORMED)
"""What reading the arrays of a device may raise that is broken, or does not mean well."""


class Outcome(NamedTuple):
    """What the agent answered to one job; ``error`` says why there are no outputs."""

    runtime: str
    error: str = ""
    outputs: tuple[Array, ...] = ()
    times: Mapping[str, NDArray[np.float64]] = MappingProxyType({})
    layers: tuple[Array, ...] = ()
    """What every operator gave for the samples asked for; ``layer_infos`` describes them."""
    result: JobResult | None = None
    cached: bool = False
    compiled: Path | None = None
    unreachable: bool = False
    remarks: tuple[str, ...] = ()
    """What is to be said beside what the runtime says itself."""

    @property
    def notes(self) -> tuple[str, ...]:
        return (*(self.result["notes"] if self.result else ()), *self.remarks)

    @property
    def details(self) -> tuple[dict[str, Scalar], ...]:
        """One row per operator, where the runtime tells."""
        return tuple(self.result["details"]) if self.result else ()

    @property
    def measurements(self) -> dict[str, Measured]:
        """What only the runtime can tell."""
        return self.result["measurements"] if self.result else {}

    @property
    def non_finite(self) -> int:
        """Output values that are NaN or infinite."""
        return self.result["non_finite"] if self.result else 0

    @property
    def output_scales(self) -> tuple[float | None, ...]:
        """Steps of the outputs; None where one is not quantized."""
        return tuple(self.result["output_scales"]) if self.result else ()

    @property
    def layer_infos(self) -> tuple[LayerInfo, ...]:
        return tuple(self.result["layers"]) if self.result else ()

    @property
    def spells(self) -> tuple[Spell, ...]:
        """What the machine was doing while latency was measured."""
        return tuple(self.result["conditions"]) if self.result else ()


def files_of_result(result: JobResult, *, timed: bool) -> list[str]:
    """The files that a job left behind; the device's answer never names a path."""
    if not result["executed"]:
        return [COMPILED] if result["compiled"] else []
    names = [OUTPUTS, TIMES] if timed else [OUTPUTS]
    return [*names, LAYERS] if result["layers"] else names


def read_outcome(runtime: str, folder: Path, model: Model, device: str, *, cached: bool) -> Outcome:
    """The outcome whose files lie in ``folder``.

    Raises:
        DeviceError: they are not what a device of good will writes.
    """
    result, failure = read_answer((folder / RESULT).read_bytes(), device)
    if result is None:
        return Outcome(runtime, failure["error"] if failure else "")
    try:
        outputs = _arrays(folder / OUTPUTS, "output")
        layers, times = _arrays(folder / LAYERS, "layer"), _times(folder / TIMES)
    except UNREADABLE as error:
        raise DeviceError(f"device {device} returned malformed arrays: {error}") from error
    if len(outputs) == len(model.outputs):
        # A file that does not tell what its integers stand for, as ONNX, gives them as they are.
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
