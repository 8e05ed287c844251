"""Device descriptions: YAML files that define the connection, the runtimes and the memory limits."""

import filecmp
import logging
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.config.settings import FileName, Settings
from edgeopt.config.units import Bytes, Hertz
from edgeopt.config.yaml_source import read_yaml
from edgeopt.devices.agent_archive import runtime_names
from edgeopt.devices.tables import known_operator_table, known_speed_table
from edgeopt.errors import Problem, RecipeError, UsageError, shortened
from edgeopt.formats.known import formats
from edgeopt.plugin import Code, Connection

SUFFIX = ".yaml"
MAX_SHOWN = 100
"""Longest name that a message quotes."""
HOST = "host"
"""The device that is this machine: it runs the source model and the intermediate steps."""
OWN_KEYS = frozenset({"name", "base", "description", "sources"})
"""Keys of a device file that say what it is; a file that starts from it does not inherit them."""
WORKING = Path("devices")
"""Folder of device files that is searched without being named: that of the working folder."""


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


def _by_runtime(options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    _known_runtimes({f"{name!r}": name for name in options})
    return options


def _connection(value: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(value, dict) and not (
        set(value) <= {"uses", "with"}
        and isinstance(value.get("uses"), str)
        and isinstance(value.get("with") or {}, dict)
    ):
        raise ValueError("expected a name, or {uses: name, with: {options}}")
    return value


class Limits(Settings):
    """Memory limits of the device, in bytes or with a unit: ``256 KiB``."""

    flash: Bytes | None = Field(default=None, description="flash available for the model, in bytes", ge=0)
    ram: Bytes | None = Field(default=None, description="RAM available for one inference, in bytes", ge=0)


class Estimate(Settings):
    """What an estimate of the latency needs where nothing can be timed; see `edgeopt.devices.estimates`."""

    kernels: Annotated[str, AfterValidator(known_speed_table)] = Field(
        description="published speed of the kernels on this processor: a table of devices/limits/speed"
    )
    clock: Hertz = Field(description="clock of the processor, such as 168 MHz", gt=0)


class Setup(Settings):
    """Packages that ``edgeopt devices setup`` installs."""

    python: tuple[str, ...] = Field(
        default=(), description="pinned requirements of the device's Python environment"
    )


class Device(Settings):
    """A device, named after its file."""

    name: FileName
    base: str | None = Field(
        None,
        description="a shipped device; its keys, but for description and sources, apply where this has none",
    )
    description: str = ""
    sources: tuple[str, ...] = Field(
        (), description="documents that limits and clock are taken from, such as a data sheet"
    )
    connection: Annotated[str | dict[str, Any], AfterValidator(_connection)] = Field(
        "local", description="connection: a name, or {uses: name, with: {options}}"
    )
    machine: str | None = Field(
        None,
        min_length=1,
        description="name of the machine that the device is: devices of one machine are measured one after "
        "the other, different machines in parallel; default from the connection",
    )
    on: str | None = Field(
        None,
        min_length=1,
        description="node of a cluster that the device is attached to, as in 'edgeopt node --name': it is "
        "measured there, with --on",
    )
    runtimes: Annotated[
        dict[str, str], BeforeValidator(_default_runtimes), AfterValidator(_known_runtimes)
    ] = Field(description="format -> runtime that runs it; 'default': the default runtime of every format")
    reference: Annotated[dict[str, dict[str, Any]], AfterValidator(_by_runtime)] = Field(
        {},
        description="runtime -> options with which it executes a quantized file exactly as written; "
        "its optimized kernels are compared with that",
    )
    options: Annotated[dict[str, dict[str, Any]], AfterValidator(_by_runtime)] = Field(
        {}, description="runtime -> its options on this device"
    )
    threads: int = Field(1, ge=1, le=1024, description="threads that a model may use during measurement")
    needs: tuple[Literal["gpu"], ...] = Field(
        (), description="hardware that the device requires: without it, its measurements are skipped"
    )
    emulated: bool = Field(False, description="an emulator: its accuracy is meaningful, its latency is not")
    limits: Limits = Limits()
    operators: Annotated[str | None, AfterValidator(known_operator_table)] = Field(
        None, description="operator table of its runtime, for 'edgeopt lint'"
    )
    estimate: Estimate | None = Field(None, description="basis of a latency estimate, where nothing is timed")
    setup: Setup = Setup()


def shipped(kind: str) -> Path:
    """The folder of the shipped ``devices`` or ``recipes``, in an installation or a checkout."""
    package = Path(str(resources.files("edgeopt")))
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent.parent / kind


def known_devices(folders: Sequence[Path] = ()) -> list[str]:
    """Names of all devices: in ``folders``, in the working folder's ``devices``, and shipped."""
    places = [*folders, WORKING, shipped("devices")]
    return sorted({file.stem for place in places for file in place.glob(f"*{SUFFIX}")})


@cache
def shipped_runtimes(format: str) -> tuple[str, ...]:
    """The runtimes that shipped devices have for a format."""
    devices = map(read_device, sorted(shipped("devices").glob(f"*{SUFFIX}")))
    return tuple(sorted({device.runtimes[format] for device in devices if format in device.runtimes}))


@cache
def devices_with(format: str, runtimes: frozenset[str]) -> tuple[str, ...]:
    """The shipped devices that run a format in one of these runtimes, without those that start from them."""
    devices = map(read_device, sorted(shipped("devices").glob(f"*{SUFFIX}")))
    return tuple(each.name for each in devices if each.base is None and each.runtimes.get(format) in runtimes)


def load_device(name: str, folders: Sequence[Path] = (), *, beside: Path | None = None) -> Device:
    """Load a device by name, or from the path of a device file.

    Args:
        name: its name, or the path of its file.
        folders: folders that the user has named, searched first: their devices may replace shipped ones.
        beside: a folder to search unasked, as the working folder's ``devices`` is: a device from there
            never replaces a shipped one, and the programs that it names are reported.

    Raises:
        UsageError: the device does not exist, or has the name of a shipped device, or its file is invalid;
            lists every mistake.
    """
    if name.endswith((SUFFIX, ".yml")) or os.sep in name:
        path = Path(os.path.expanduser(name))  # unlike Path.expanduser, keeps the ~ of an unknown user
        if not _is_file(path):
            raise UsageError(
                f"no such device file: {shortened(str(path), MAX_SHOWN)}",
                fix="give a device name or the path of a device file",
            )
        return read_device(path)
    unasked = [WORKING] if beside is None else [beside, WORKING]
    own = shipped("devices") / f"{name}{SUFFIX}"
    for place in (*folders, *unasked):
        path = place / f"{name}{SUFFIX}"
        if not _is_file(path) or (_is_file(own) and filecmp.cmp(path, own, shallow=False)):
            continue  # also a copy of the repository, whose devices folder is the shipped one
        device = read_device(path)
        if place in folders:
            return device
        if _is_file(own):
            raise UsageError(
                f"{path} has the name of a shipped device, and would replace it",
                fix=f"rename the file, or allow it with: --device-folder {place}",
            )
        _report_programs(device, path)
        return device
    if _is_file(own):
        return read_device(own)
    searched = ", ".join(str(place) for place in (*folders, *unasked, own.parent))
    raise UsageError(
        f"no device {shortened(name, MAX_SHOWN)!r}{_suggested(name, folders)}",
        fix=f"searched for its file in {searched}; 'edgeopt devices list' shows all devices",
    )


def _suggested(name: str, folders: Sequence[Path]) -> str:
    """The end of the message on an unknown name: the shipped device described with it, or the nearest."""
    part = re.compile(rf"\b{re.escape(name)}", re.IGNORECASE)
    devices = map(read_device, shipped("devices").glob(f"*{SUFFIX}"))
    described = [device.name for device in devices if part.search(device.description)]
    return (
        f"; did you mean {described[0]!r}?" if len(described) == 1 else nearest(name, known_devices(folders))
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not allow
        return False


def _report_programs(device: Device, path: Path) -> None:
    """Name the programs that a device file from a folder that nobody named would run."""
    uses, _ = connection_parts(device)
    named = [uses] if ":" in uses else connection_of(device).programs()
    named += [
        value for options in device.options.values() for value in options.values() if _is_program(value)
    ]
    if named:
        logging.getLogger("edgeopt").warning(
            f"device {device.name}, described in {path}, runs {', '.join(map(repr, named))}"
        )


def _is_program(value: object) -> bool:
    """Whether an option of a runtime names a program: a path, or a command."""
    return isinstance(value, str) and (os.sep in value or shutil.which(value) is not None)


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
    problems = Problems(path, positions)
    try:
        inherited = _inherited(document.get("base"))
    except UsageError as error:
        problems.add(("base",), error.message)
        raise problems.error() from error
    try:
        device = Device.model_validate({"name": path.stem, **inherited, **document})
    except ValidationError as error:
        problems.refused(error, (), Device)
        raise problems.error() from error
    uses, options = connection_parts(device)
    try:
        if ":" in uses:  # user code: it is not imported before it is used
            Code.model_validate(uses)
        else:
            kind = registry.find(Connection, uses)
            try:
                kind.model_validate(options)
            except ValidationError as error:
                problems.refused(error, ("connection", "with"), kind)
    except ValidationError as error:
        problems.refused(error, ("connection", "uses"), Code)
    except UsageError as error:
        problems.add(("connection", "uses"), error.message)
    if problems:
        raise problems.error()
    return device


def _inherited(base: object) -> dict[str, Any]:
    """The keys that a device file takes from the shipped device ``base``.

    Raises:
        UsageError: there is none of that name.
    """
    if base is None:
        return {}
    known = sorted(file.stem for file in shipped("devices").glob(f"*{SUFFIX}"))
    if not isinstance(base, str) or base not in known:
        name = shortened(str(base), MAX_SHOWN)
        raise UsageError(f"no shipped device {name!r}{nearest(name, known)}")
    document, _ = read_yaml((shipped("devices") / f"{base}{SUFFIX}").read_text("utf-8"), base)
    assert isinstance(document, dict)  # shipped
    merged = _inherited(document.get("base")) | document
    return {key: value for key, value in merged.items() if key not in OWN_KEYS}


def machine_of(device: Device) -> str:
    """The machine that a device is, '' if it is timed on this one; see `Connection.machine`.

    An emulated device is a machine of its own: its latency, which others would disturb, is not measured.
    """
    machine = device.machine
    if machine is None and not device.emulated:
        with suppress(UsageError):  # a connection that is none: it fails when it is opened
            machine = connection_of(device).machine()
    return f"device {device.name}" if machine is None else machine


def connection_parts(device: Device) -> tuple[str, dict[str, Any]]:
    """The name of a device's connection, and its options."""
    entry = device.connection
    return (entry, {}) if isinstance(entry, str) else (entry["uses"], entry.get("with") or {})


def connection_of(device: Device) -> Connection:
    """The connection of a device, not yet opened.

    Raises:
        UsageError: there is none of that name, or it rejects its options.
    """
    uses, options = connection_parts(device)
    kind = registry.find(Connection, uses)
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        problems = Problems(Path(f"device {device.name}"), {})
        problems.refused(error, ("connection", "with"), kind)
        raise problems.error() from error
