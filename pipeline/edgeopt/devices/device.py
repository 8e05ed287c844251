"""Device descriptions: YAML files that define the connection, the runtimes and the memory limits."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgeopt.config.nearest import nearest
from edgeopt.config.units import Bytes
from edgeopt.config.yaml_source import read_yaml
from edgeopt.devices.agent_archive import runtime_names
from edgeopt.errors import Problem, RecipeError, UsageError
from edgeopt.formats.known import formats

SUFFIX = ".yaml"


def _default_runtimes(value: object) -> object:
    """Expand ``default`` to every format with its default runtime."""
    if value != "default":
        return value
    return {name: each.runtime for name, each in formats().items() if each.runtime is not None}


def _known_runtimes(runtimes: dict[str, str]) -> dict[str, str]:
    known = runtime_names()
    for format_name, runtime in runtimes.items():
        if runtime not in known:
            raise ValueError(f"{format_name}: no runtime {runtime!r}{nearest(runtime, known)}")
    return runtimes


def _connection(value: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(value, dict) and (set(value) - {"uses", "with"} or not isinstance(value.get("uses"), str)):
        raise ValueError("expected a name, or {uses: name, with: {options}}")
    return value


def operator_tables() -> dict[str, Path]:
    """The shipped operator tables by name; `edgeopt.devices.lint` reads them."""
    folder = Path(str(resources.files("edgeopt"))) / "devices" / "limits"
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def _known_table(value: str | None) -> str | None:
    known = operator_tables()
    if value is not None and value not in known:
        raise ValueError(f"no operator table {value!r}{nearest(value, list(known))}")
    return value


class Limits(BaseModel):
    """Memory limits of the device, in bytes or with a unit: ``256 KiB``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flash: Bytes | None = Field(default=None, description="flash available for the model, in bytes", ge=0)
    ram: Bytes | None = Field(default=None, description="RAM available for one inference, in bytes", ge=0)


class Setup(BaseModel):
    """Packages that ``edgeopt devices setup`` installs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: tuple[str, ...] = Field(
        default=(), description="pinned requirements of the device's Python environment"
    )


class Device(BaseModel):
    """A device, named after its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    connection: Annotated[str | dict[str, Any], AfterValidator(_connection)] = Field(
        "local", description="connection: a name, or {uses: name, with: {options}}"
    )
    runtimes: Annotated[
        dict[str, str], BeforeValidator(_default_runtimes), AfterValidator(_known_runtimes)
    ] = Field(description="format -> runtime that runs it; 'default': the default runtime of every format")
    reference: dict[str, dict[str, Any]] = Field(
        {},
        description="runtime -> options with which it executes a quantized file exactly as written; "
        "its optimized kernels are compared with that",
    )
    options: dict[str, dict[str, Any]] = Field({}, description="runtime -> its options on this device")
    threads: int = Field(1, ge=1, description="threads that a model may use during measurement")
    needs: tuple[Literal["gpu"], ...] = Field(
        (), description="hardware that the device requires: without it, its measurements are skipped"
    )
    emulated: bool = Field(False, description="an emulator: its accuracy is meaningful, its latency is not")
    limits: Limits = Limits()
    operators: Annotated[str | None, AfterValidator(_known_table)] = Field(
        None, description="operator table of its runtime, for 'edgeopt lint'"
    )
    setup: Setup = Setup()


def shipped(kind: str) -> Path:
    """The folder of the shipped ``devices`` or ``recipes``, in an installation or a checkout."""
    package = Path(str(resources.files("edgeopt")))
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent.parent / kind


def known_devices(folders: Sequence[Path] = ()) -> list[str]:
    """Names of all devices, user-defined and shipped."""
    places = [*folders, shipped("devices")]
    return sorted({file.stem for place in places for file in place.glob(f"*{SUFFIX}")})


def load_device(name: str, folders: Sequence[Path] = ()) -> Device:
    """Load the device ``name`` from the user's ``folders`` or, failing that, from the shipped devices.

    ``name`` may also be the path of a device file.

    Raises:
        UsageError: the device does not exist, or its file is invalid; lists every mistake.
    """
    if name.endswith((SUFFIX, ".yml")) or os.sep in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(
                f"no such device file: {path}", fix="give a device name or the path of a device file"
            )
        return read_device(path)
    places = [*folders, shipped("devices")]
    for place in places:
        path = place / f"{name}{SUFFIX}"
        if path.is_file():
            return read_device(path)
    searched = ", ".join(str(place) for place in places)
    raise UsageError(
        f"no device {name!r}{nearest(name, known_devices(folders))}",
        fix=f"searched for {name}{SUFFIX} in {searched}; 'edgeopt devices list' shows all devices",
    )


def read_device(path: Path) -> Device:
    """Read a device file.

    Raises:
        UsageError: the file cannot be read.
        RecipeError: the file is invalid; lists every mistake.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read device file {path}: {error}") from error
    document, positions = read_yaml(text, str(path))
    if not isinstance(document, dict):
        raise RecipeError(str(path), [Problem("a device file must be a mapping of settings", 1, 1)])
    try:
        return Device.model_validate({"name": path.stem, **document})
    except ValidationError as error:
        problems = []
        for mistake in error.errors(include_url=False):
            where = tuple(mistake["loc"])
            known = where
            while known and known not in positions:
                known = known[:-1]
            line, column = positions.get(known, (0, 0))
            message = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] == "extra_forbidden":
                message = f"unknown key {str(where[-1])!r}{nearest(str(where[-1]), _sibling_keys(where))}"
            problems.append(Problem(message, line, column, ".".join(str(part) for part in where)))
        raise RecipeError(str(path), problems) from error


def _sibling_keys(where: tuple[str | int, ...]) -> list[str]:
    kinds: dict[str | int, type[BaseModel]] = {"limits": Limits, "setup": Setup}
    kind = kinds.get(where[0], Device) if len(where) > 1 else Device
    return list(kind.model_fields)
