"""What a file takes of a device's flash and RAM, without running it."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.config.units import show_bytes
from edgeopt.devices.device import Device, Limits
from edgeopt.devices.estimates import code_size_of, runtime_code
from edgeopt.devices.tables import limits_of
from edgeopt.formats.known import format_named
from edgeopt.plugin import Operator

FLOAT = "float32"
INDICES = frozenset({"int32", "int64"})
"""Types of constants that are axes, shapes or indices, not weights."""
SMALL = 0.01
"""Smallest fraction that is shown as a number."""


class Share(BaseModel):
    """The bytes of one memory that a file takes, as a band, and the device's limit."""

    model_config = ConfigDict(frozen=True)

    memory: str = Field(description="flash or RAM")
    low: int
    high: int | None = Field(description="None if only a lower bound is known")
    limit: int
    parts: str = Field(description="what the bytes are, as text")
    sources: str = ""

    def __str__(self) -> str:
        low, high = (_percent(value / self.limit) for value in (self.low, self.high or self.low))
        percent = low if low == high else f"{low} to {high}"
        least = "at least " if self.high is None and self.low >= SMALL * self.limit else ""
        return f"{self.memory}: {self.parts}, {least}{percent} of {show_bytes(self.limit)}"


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= SMALL else f"under {SMALL:.0%}"


class Usage(BaseModel):
    """The shares of a device's memories, and a hint where a smaller file is one word away."""

    model_config = ConfigDict(frozen=True)

    shares: tuple[Share, ...] = ()
    hint: str = ""


def usage(file: Path, device: Device, format: str) -> Usage:
    """What ``file`` takes of the memories for which the device file has a limit.

    Flash: the file, and a band for the runtime's code where sizes are published. RAM: the largest inputs and
    outputs of one operator, a lower bound for the arena.

    Raises:
        StageError: the file is not of that format, or is damaged.
    """
    if device.limits == Limits():
        return Usage()
    kind = format_named(format)
    operators = kind.operators(file) or ()
    shares = _flash(kind.size_bytes(file), operators, device, format), _ram(operators, device)
    return Usage(shares=tuple(share for share in shares if share), hint=_hint(operators))


def _flash(size: int, operators: Sequence[Operator], device: Device, format: str) -> Share | None:
    if device.limits.flash is None:
        return None
    code, parts = runtime_code(operators, device, format), f"{show_bytes(size)} for the file"
    published = code_size_of(device.runtimes.get(format, ""))
    if code is not None and published is not None:
        parts += f" and {show_bytes(code.low)} to {show_bytes(code.high)} for the code of {published.runtime}"
    return Share(
        memory="flash",
        low=size + int(code.low if code else 0),
        high=size + int(code.high if code else 0),
        limit=device.limits.flash,
        parts=parts,
        sources=code.basis if code else "",
    )


def _ram(operators: Sequence[Operator], device: Device) -> Share | None:
    largest = max((operator.working for operator in operators), default=0)
    whole = device.operators is None or limits_of(device.operators).whole_tensors
    if device.limits.ram is None or not largest or not whole:
        return None
    parts = f"{show_bytes(largest)} for the tensors of the largest operator"
    return Share(memory="RAM", low=largest, high=None, limit=device.limits.ram, parts=parts)


def _hint(operators: Sequence[Operator]) -> str:
    """A hint at int8 for a file that computes in float32."""
    weighted = [operator for operator in operators if operator.weight and operator.weight not in INDICES]
    types = {(operator.activation, operator.weight) for operator in weighted}
    if types != {(FLOAT, FLOAT)}:
        return ""
    return (
        "a float file: 'quantize: int8' takes about a quarter of its flash and RAM, and optimized kernels of "
        "microcontrollers are for int8"
    )
