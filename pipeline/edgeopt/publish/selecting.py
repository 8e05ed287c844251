"""Selects the bundle of a release that suits a device, from the descriptors alone."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from edgeopt.config.nearest import nearest
from edgeopt.devices.device import Device, known_devices
from edgeopt.errors import UsageError
from edgeopt.formats.wire.bounded import json_value
from edgeopt.publish.oci import FACTS, Descriptor, Index


class Facts(BaseModel):
    """The properties of a bundle that are known before it is fetched."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    variant: str
    format: str
    device: str
    size_bytes: int
    digest: str = ""
    """sha256 over all files of a multi-file model; otherwise empty: the layer has the digest."""
    compiled: bool = False
    """By the device's own compiler: unusable on other devices."""
    operators: tuple[str, ...] | None = None
    """Kinds of operators in the file; None if its format does not declare them."""
    arena_bytes: int | None = None
    runtime: str = ""
    """The measured runtime, such as ``litert 2.3.0``."""
    gates: str = "none"
    """``pass``, ``fail`` or ``none``: the gates of this result."""
    measurements: dict[str, float] = {}
    texts: dict[str, str] = {}
    """The measurements as formatted text."""


class Choice(BaseModel):
    """The selected bundle, and the reason."""

    model_config = ConfigDict(frozen=True)

    descriptor: Descriptor
    facts: Facts
    reason: str
    others: tuple[Facts, ...] = ()


def facts_of(descriptor: Descriptor) -> Facts:
    """The facts of a bundle's descriptor."""
    return Facts.model_validate(json_value(descriptor.annotations[FACTS]))


def bundles(index: Index) -> list[tuple[Descriptor, Facts]]:
    """The bundles of a release, in its order."""
    return [(each, facts_of(each)) for each in index.manifests if FACTS in each.annotations]


def choose(
    index: Index,
    device_name: str,
    device: Device | None,
    *,
    variant: str | None = None,
    format_name: str | None = None,
    operators: frozenset[str] | None = None,
    compiles: bool = False,
) -> Choice:
    """Select the bundle for the device called ``device_name``.

    Bundles measured on that device are preferred. Otherwise ``device`` declares what it can run: formats it
    has a runtime for, its flash and RAM, and ``operators``, the names its runtime supports. A device that
    ``compiles`` its files runs no other ones. Among the bundles that fit, those whose gates pass come first,
    then optimized ones, then the smallest.

    Raises:
        UsageError: nothing fits; the error lists the bundles and why each does not fit.
    """
    available = bundles(index)
    matching = [
        (descriptor, facts)
        for descriptor, facts in available
        if variant in (None, facts.variant) and format_name in (None, facts.format)
    ]
    if not matching:
        raise UsageError(
            f"this release has no bundle of variant {variant or 'any'} in format {format_name or 'any'}",
            fix=f"it has {_listed([facts for _, facts in available])}",
        )
    fitting = [(d, f) for d, f in matching if f.device == device_name]
    reason = f"measured on {device_name}"
    if not fitting:
        if device is None:
            known = sorted({facts.device for _, facts in available})
            raise UsageError(
                f"no device file describes {device_name!r}, and no bundle of this release was measured on it"
                f"{nearest(device_name, [*known, *known_devices()])}",
                fix=f"choose one of {', '.join(known)}, or add a device file: --device-folder DIR",
            )
        obstacles = [(d, f, _obstacle(f, device, operators, compiles=compiles)) for d, f in matching]
        fitting = [(d, f) for d, f, obstacle in obstacles if not obstacle]
        reason = f"not measured on {device_name}, but it meets the limits of its device file"
        if not fitting:
            obstacle_lines = sorted({f"{f.variant}.{f.format}: {obstacle}" for _, f, obstacle in obstacles})
            raise UsageError(f"no bundle of this release fits {device_name}", fix="\n  ".join(obstacle_lines))
    ranked = sorted(fitting, key=lambda pair: _rank(pair[1], device))
    descriptor, facts = ranked[0]
    others = {(each.variant, each.format): each for _, each in reversed(ranked)}
    others.pop((facts.variant, facts.format))
    alternatives = sorted(others.values(), key=lambda each: _rank(each, device))
    return Choice(descriptor=descriptor, facts=facts, reason=reason, others=tuple(alternatives))


def _rank(facts: Facts, device: Device | None) -> tuple[bool, bool, int, tuple[bool, bool], str]:
    """Order by gates, optimization and size; of equal files, prefer the device's own runtime, then its kind.

    A microcontroller reports an arena and has a limit of flash; other devices have neither.
    """
    own = device.runtimes.get(facts.format) if device else None
    foreign = facts.runtime.partition(" ")[0] != own
    micro = device is not None and device.limits.flash is not None
    other_kind = (facts.arena_bytes is not None) != micro
    return (
        facts.gates == "fail",
        facts.variant == "float",
        facts.size_bytes,
        (foreign, other_kind),
        facts.device,
    )


def _obstacle(facts: Facts, device: Device, operators: frozenset[str] | None, *, compiles: bool) -> str:
    """The reason why a bundle for another device does not fit; empty if it fits."""
    if facts.compiled:
        return f"compiled for {facts.device}"
    if facts.format not in device.runtimes:
        return f"{device.name} has no runtime for {facts.format}"
    if compiles:
        return f"not compiled for {device.name}: add it to the recipe's devices, and publish again"
    limits = device.limits
    if limits.flash is not None and facts.size_bytes > limits.flash:
        return f"{facts.size_bytes:,} bytes, and {device.name} has {limits.flash:,} bytes of flash"
    if limits.ram is not None and facts.arena_bytes is not None and facts.arena_bytes > limits.ram:
        return f"needs {facts.arena_bytes:,} bytes, and {device.name} has {limits.ram:,} bytes of RAM"
    if operators is not None and facts.operators is not None:
        missing = sorted(set(facts.operators) - operators)
        if missing:
            return f"{device.name} does not support {', '.join(missing)}"
    return ""


def _listed(facts: Sequence[Facts]) -> str:
    return ", ".join(sorted({f"{each.variant}.{each.format}" for each in facts})) or "no bundles"
