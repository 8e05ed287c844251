"""Estimates from published figures, for devices on which nothing is timed: latency, and the runtime's code.

Every estimate is a band between the lowest and the highest published figure, never a single number. The
tables ``limits/speed`` have runs of whole networks, as their authors published them, and ``limits/code``
sizes of programs. Networks that are unlike the published ones may lie outside of a band.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.devices.device import Device
from edgeopt.devices.tables import code_tables, speed_tables
from edgeopt.plugin import LayerSize, Operator

INTEGER = "int8"
"""Type of the activations and weights of the published networks."""


class Band(NamedTuple):
    """A lower and an upper figure, and what they are derived from."""

    low: float
    high: float
    basis: str


class PublishedRun(BaseModel):
    """One run of a whole network on a processor, as published by its authors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    source: str
    macs: int
    seconds: float
    clock: float = Field(description="in Hz")

    @property
    def macs_per_cycle(self) -> float:
        return self.macs / (self.seconds * self.clock)


class Speed(BaseModel):
    """Published speed of int8 kernels on a processor: a file of ``limits/speed``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    kernels: str
    margin: float = Field(
        1.0,
        ge=1,
        description="factor by which other networks are assumed slower or faster, if one is published",
    )
    networks: tuple[PublishedRun, ...] = Field(min_length=1)

    @property
    def macs_per_cycle(self) -> tuple[float, float]:
        """The slowest and the fastest figure."""
        speeds = [run.macs_per_cycle for run in self.networks]
        return min(speeds) / self.margin, max(speeds) * self.margin


class Build(BaseModel):
    """Code size of one program that links a runtime and the kernels of some operators."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str
    source: str
    operators: int = Field(ge=1)
    bytes: int


class CodeSize(BaseModel):
    """Published code sizes of a runtime: a file of ``limits/code``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str
    core: int = Field(description="bytes without any operator")
    source: str
    builds: tuple[Build, ...] = Field(min_length=1)


@cache
def speed_of(table: str) -> Speed:
    """The speed table ``table``; `device.read_device` has checked that it exists."""
    return Speed.model_validate(json.loads(speed_tables()[table].read_text("utf-8")))


@cache
def code_size_of(runtime: str) -> CodeSize | None:
    """The code sizes of a runtime; None if nothing is published."""
    table = code_tables().get(runtime)
    return None if table is None else CodeSize.model_validate(json.loads(table.read_text("utf-8")))


def latency_band(layers: Sequence[LayerSize], device: Device) -> Band | None:
    """Time of one inference in ms, from the MACs of a file's layers.

    None if the device file has no ``estimate``, and for what the published figures do not cover: layers that
    compute with other types than int8, and those whose MACs are unknown.
    """
    if device.estimate is None:
        return None
    counted = [layer for layer in layers if layer.macs != 0]
    if not counted or any(layer.macs is None or layer.types[:1] != (INTEGER,) for layer in counted):
        return None
    macs = sum(layer.macs or 0 for layer in counted)
    speed = speed_of(device.estimate.kernels)
    slowest, fastest = speed.macs_per_cycle
    milliseconds = macs / device.estimate.clock * 1e3
    sources = "; ".join(dict.fromkeys(run.source for run in speed.networks))
    assumed = f", assumed up to {speed.margin:g} times slower or faster" if speed.margin > 1 else ""
    basis = (
        f"{macs:,} MACs at {device.estimate.clock / 1e6:g} MHz, "
        f"{slowest:.2g} to {fastest:.2g} MACs per cycle "
        f"with {speed.kernels} on {speed.processor} ({sources}{assumed})"
    )
    return Band(milliseconds / fastest, milliseconds / slowest, basis)


def code_band(operators: int, runtime: str) -> Band | None:
    """Bytes of code of a runtime with this number of kinds of operators; None if nothing is published."""
    size = code_size_of(runtime)
    if size is None:
        return None
    each = [(build.bytes - size.core) / build.operators for build in size.builds]
    sources = "; ".join((size.source, *(f"{build.program}: {build.source}" for build in size.builds)))
    return Band(size.core + operators * min(each), size.core + operators * max(each), sources)


def runtime_code(operators: Sequence[Operator], device: Device, format: str) -> Band | None:
    """Bytes of the code of a device's runtime for these operators; None if nothing is published."""
    kinds = {operator.kind for operator in operators}
    return code_band(len(kinds), device.runtimes.get(format, "")) if kinds else None
