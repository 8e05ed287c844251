"""The tables that ship with edgeopt: operators, speed of kernels, size of code, wrong kernels."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.config.nearest import nearest

Severity = Literal["error", "warning"]

LIMITS = Path(str(resources.files("edgeopt"))) / "devices" / "limits"


def operator_tables() -> dict[str, Path]:
    """The operators that each runtime supports, by name; `limits_of` reads them."""
    return _tables(LIMITS)


def speed_tables() -> dict[str, Path]:
    """Published speed of kernels on a processor, by name; `edgeopt.devices.estimates` reads them."""
    return _tables(LIMITS / "speed")


def code_tables() -> dict[str, Path]:
    """Published code sizes of runtimes, by runtime; `edgeopt.devices.estimates` reads them."""
    return _tables(LIMITS / "code")


class Fault(BaseModel):
    """Operators that a runtime is known to compute wrongly, or not at all. Without kinds or types: all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operators: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    message: str
    fix: str


class FaultTable(BaseModel):
    """What is known to be wrong in a runtime: a file of ``limits/faults/``, named after the runtime."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    source: str
    faults: tuple[Fault, ...]


@cache
def faults_of(format: str, runtime: str) -> tuple[Fault, ...]:
    """The known faults of a runtime in files of a format."""
    if (file := _tables(LIMITS / "faults").get(runtime)) is None:
        return ()
    table = FaultTable.model_validate_json(file.read_text("utf-8"))
    return table.faults if table.format == format else ()


class Limit(BaseModel):
    """Limits of a runtime for one operator. An unset field means no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int | None = None
    types: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()


class OperatorTable(BaseModel):
    """The operators that a runtime supports: a file of ``limits/``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field(description="format of the files that the runtime loads")
    runtime: str
    source: str
    missing: Annotated[Severity, Field(description="severity of an unsupported operator")]
    fallback: str = Field("", description="what executes unsupported operators")
    static_shapes: bool = Field(False, description="whether only the batch dimension may be dynamic")
    whole_tensors: bool = Field(
        True, description="whether an operator's inputs and outputs are in memory as a whole"
    )
    compiled: bool = Field(False, description="whether files are compiled for a device before they run on it")
    custom: tuple[str, ...] = ()
    operators: dict[str, Limit]


@cache
def limits_of(table: str) -> OperatorTable:
    """The operator table ``table``; `device.read_device` has checked that it exists."""
    return OperatorTable.model_validate(json.loads(operator_tables()[table].read_text("utf-8")))


def known_operator_table(value: str | None) -> str | None:
    """Accept the name of an operator table.

    Raises:
        ValueError: there is none of that name.
    """
    return _known(value, operator_tables(), "operator table")


def known_speed_table(value: str) -> str:
    """Accept the name of a speed table.

    Raises:
        ValueError: there is none of that name.
    """
    _known(value, speed_tables(), "speed table")
    return value


def _tables(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def _known(value: str | None, known: dict[str, Path], what: str) -> str | None:
    if value is not None and value not in known:
        raise ValueError(f"no {what} {value!r}{nearest(value, list(known))}")
    return value
