"""What this installation can do: conversions, variants, and the tools of the machine that devices need."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgeopt.config import registry
from edgeopt.config.references import Code
from edgeopt.devices.device import HOST, load_device
from edgeopt.errors import UsageError, install
from edgeopt.formats.known import artifact_formats, formats
from edgeopt.plugin import Format, Stage
from edgeopt.recipe.chains import find_chain
from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.recipe import Intent
from edgeopt.run.cluster.node import version_here
from edgeopt.run.executors import executor
from edgeopt.run.executors.choice import executing, executor_for
from edgeopt.run.measuring.probe import probe_device
from edgeopt.run.measuring.protocol import Probe
from edgeopt.run.store import ARTIFACTS, store_place

SCHEMES = ("float", "int8")
TOOLS = {
    "adb": ("Android devices", "apt install adb"),
    "qemu-aarch64-static": ("emulated arm64", "apt install qemu-user-static"),
    "ssh": ("boards over ssh", "apt install openssh-client"),
    "nvidia-smi": ("hosts with a GPU", "install the NVIDIA driver"),
}
"""Programs that devices need: for what, and how to install them."""


class Conversion(NamedTuple):
    """Whether a kind of model can become an artifact here; the packages that are missing, and the fix."""

    source: str
    format: str
    scheme: str
    possible: bool
    missing: tuple[str, ...] = ()
    fix: str = ""


class Machine(NamedTuple):
    """The machine: what the agent reports, the space for artifacts, and the tools that are installed."""

    probe: Probe
    free_bytes: int
    tools: dict[str, bool]


def conversions() -> Iterator[Conversion]:
    """Every kind of source model in every format, as float and as int8."""
    for source in _sources():
        for scheme in SCHEMES:
            intents = [] if scheme == "float" else [Intent("quantize", scheme, {})]
            for target in artifact_formats():
                chain = _chain(source, target, intents)
                if chain is None:
                    yield Conversion(source, target, scheme, False)
                    continue
                missing = tuple(sorted({package for stage in chain for package in stage.missing()}))
                needed = ",".join(stage.extra for stage in chain if stage.missing() and stage.extra)
                extras = sorted({*filter(None, needed.split(","))})
                fix = install(",".join(extras)) if extras else f"pip install {' '.join(missing)}"
                yield Conversion(source, target, scheme, not missing, missing, fix if missing else "")


def _sources() -> list[str]:
    """The formats of source models: what is a factory, or can be read, and becomes another format."""
    return [
        name
        for name, each in formats().items()
        if (each.from_factory or type(each).read is not Format.read)
        and any(_chain(name, target, []) for target in artifact_formats() if target != name)
    ]


def _chain(source: str, target: str, intents: list[Intent]) -> tuple[Stage, ...] | None:
    part = ModelPart.model_construct(factory=Code.model_construct(target="module:function"))
    try:
        return find_chain(source, target, intents, part)
    except UsageError:
        return None


class Differing(NamedTuple):
    """A machine that stages run on, and its packages of another version: theirs and this machine's."""

    machine: executor.Machine
    packages: dict[str, tuple[str, str]]


def machines(on: str) -> list[Differing]:
    """The machines that the executor ``on`` runs stages on.

    Raises:
        UsageError: there is no such executor.
        CannotRunError: it cannot be used.
    """
    required = {package for stage in registry.plugins(Stage).values() for package in stage.requires}
    here = {name: version_here(name) for name in ("edgeopt", *sorted(required))}
    with executing(on, store_place(None), lambda event: None), executor_for(None) as used:
        found = used.machines([*here])
    return [Differing(each, _differing(each.about.get("versions", {}), here)) for each in found]


def _differing(there: dict[str, str], here: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (version, here[name]) for name, version in there.items() if version != here[name]}


def machine() -> Machine:
    """Probe this machine.

    Raises:
        DeviceError: the agent does not run here.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        probe = probe_device(load_device(HOST), Path(folder))
    place = ARTIFACTS if os.path.isdir(ARTIFACTS) else Path()
    tools = {name: shutil.which(name) is not None for name in TOOLS}
    return Machine(probe, shutil.disk_usage(place).free, tools)
