"""What a device is: a YAML file that says how to reach it, what it can run, and how small it is."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgeopt.config.registry import nearest
from edgeopt.config.units import Bytes
from edgeopt.config.yaml_source import read_yaml
from edgeopt.devices.agent_archive import runtime_names
from edgeopt.errors import Problem, RecipeError, UsageError

SUFFIX = ".yaml"


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
    """The shipped tables of operators, by name; `edgeopt.devices.lint` reads them."""
    folder = Path(str(resources.files("edgeopt.devices"))) / "limits"
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def _known_table(value: str | None) -> str | None:
    known = operator_tables()
    if value is not None and value not in known:
        raise ValueError(f"no table of operators {value!r}{nearest(value, list(known))}")
    return value


class Limits(BaseModel):
    """Memory of the device, as bytes or with a unit: ``256 KiB``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flash: Bytes | None = Field(default=None, description="room for the model, in bytes", ge=0)
    ram: Bytes | None = Field(default=None, description="working memory for one inference, in bytes", ge=0)


class Setup(BaseModel):
    """What the command ``edgeopt devices setup`` installs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: tuple[str, ...] = Field(
        default=(), description="pinned requirements of the device's own Python environment"
    )


class Device(BaseModel):
    """One device. Its name is the name of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    connection: Annotated[str | dict[str, Any], AfterValidator(_connection)] = Field(
        "local", description="how it is reached: a connection's name, or {uses: name, with: {options}}"
    )
    runtimes: Annotated[dict[str, str], AfterValidator(_known_runtimes)] = Field(
        description="model format -> the runtime that runs it there"
    )
    reference: dict[str, dict[str, Any]] = Field(
        {},
        description="runtime -> options with which it executes a quantized file exactly as it is written; "
        "its fast kernels are held against that",
    )
    options: dict[str, dict[str, Any]] = Field({}, description="runtime -> its options on this device")
    threads: int = Field(1, ge=1, description="threads a model may use while it is measured")
    needs: tuple[Literal["gpu"], ...] = Field(
        (), description="hardware without which nothing is sent there: what would run on it is skipped"
    )
    emulated: bool = Field(False, description="an emulator: accuracy counts, latency does not")
    limits: Limits = Limits()
    operators: Annotated[str | None, AfterValidator(_known_table)] = Field(
        None, description="the table of operators that its TFLite runtime has, for 'edgeopt lint'"
    )
    setup: Setup = Setup()


def shipped(kind: str) -> Path:
    """The folder of shipped files: ``devices`` or ``recipes``, installed or in a checkout."""
    package = Path(str(resources.files("edgeopt")))
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent.parent / kind


def known_devices(folders: Sequence[Path] = ()) -> list[str]:
    """Names of all devices: the user's own, and the shipped ones."""
    places = [*folders, shipped("devices")]
    return sorted({file.stem for place in places for file in place.glob(f"*{SUFFIX}")})


def load_device(name: str, folders: Sequence[Path] = ()) -> Device:
    """The device called ``name``: the user's ``folders`` come first, then the shipped ones.

    ``name`` may also be the path of a device file.

    Raises:
        UsageError: there is no such device, or its file is wrong, with every mistake in it.
    """
    if name.endswith((SUFFIX, ".yml")) or os.sep in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(
                f"no such device file: {path}", fix="give the name of a device or the path of its file"
            )
        return read_device(path)
    places = [*folders, shipped("devices")]
    for place in places:
        path = place / f"{name}{SUFFIX}"
        if path.is_file():
            return read_device(path)
    looked = ", ".join(str(place) for place in places)
    raise UsageError(
        f"no device {name!r}{nearest(name, known_devices(folders))}",
        fix=f"looked for {name}{SUFFIX} in {looked}; 'edgeopt devices list' shows all devices",
    )


def read_device(path: Path) -> Device:
    """Read one device file.

    Raises:
        UsageError: it cannot be read, or it is wrong; a ``RecipeError`` then lists every mistake.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read device file {path}: {error}") from error
    document, positions = read_yaml(text, str(path))
    if not isinstance(document, dict):
        raise RecipeError(str(path), [Problem("a device file is a mapping of settings", 1, 1)])
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
                message = f"unknown key {str(where[-1])!r}{nearest(str(where[-1]), _keys_beside(where))}"
            problems.append(Problem(message, line, column, ".".join(str(part) for part in where)))
        raise RecipeError(str(path), problems) from error


def _keys_beside(where: tuple[str | int, ...]) -> list[str]:
    kinds: dict[str | int, type[BaseModel]] = {"limits": Limits, "setup": Setup}
    kind = kinds.get(where[0], Device) if len(where) > 1 else Device
    return list(kind.model_fields)
