"""Which bundle of a release suits a device: what each one's descriptor tells is enough to decide."""

import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from edgeopt.config.registry import nearest
from edgeopt.devices.device import Device
from edgeopt.errors import UsageError
from edgeopt.publish.annotations import FACTS
from edgeopt.publish.oci import Descriptor, Index


class Facts(BaseModel):
    """What is to be known of a bundle before it is fetched."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    variant: str
    format: str
    device: str
    size_bytes: int
    compiled: bool = False
    """Made by the device's own compiler: of no use elsewhere."""
    operators: tuple[str, ...] | None = None
    """Operators of a TFLite file, None where they are not known."""
    arena_bytes: int | None = None
    runtime: str = ""
    """What ran it, such as ``litert 2.3.0``."""
    gates: str = "none"
    """``pass``, ``fail`` or ``none``: the gates about this row."""
    measurements: dict[str, float] = {}


class Choice(BaseModel):
    """A bundle, and why it is the one."""

    model_config = ConfigDict(frozen=True)

    descriptor: Descriptor
    facts: Facts
    reason: str
    others: tuple[Facts, ...] = ()


def facts_of(descriptor: Descriptor) -> Facts:
    """The facts of a bundle's descriptor."""
    return Facts.model_validate(json.loads(descriptor.annotations[FACTS]))


def bundles(index: Index) -> list[tuple[Descriptor, Facts]]:
    """The bundles of a release, in its order."""
    return [(each, facts_of(each)) for each in index.manifests if FACTS in each.annotations]


def choose(
    index: Index,
    wanted: str,
    device: Device | None,
    *,
    variant: str | None = None,
    format_name: str | None = None,
    operators: frozenset[str] | None = None,
) -> Choice:
    """The bundle for the device called ``wanted``.

    One that was measured on that device comes first. Otherwise ``device`` says what it can run:
    formats it has a runtime for, its flash and RAM, and ``operators``, the names its runtime knows. Among
    what fits, artifacts whose gates hold come first, then optimized ones, then the smallest.

    Raises:
        UsageError: nothing fits; with what there is and why each does not.
    """
    there = bundles(index)
    asked = [
        (descriptor, facts)
        for descriptor, facts in there
        if variant in (None, facts.variant) and format_name in (None, facts.format)
    ]
    if not asked:
        raise UsageError(
            f"this release has nothing of variant {variant or 'any'} in format {format_name or 'any'}",
            fix=f"it has {_listed([facts for _, facts in there])}",
        )
    fitting = [(d, f) for d, f in asked if f.device == wanted]
    reason = f"measured on {wanted}"
    if not fitting:
        if device is None:
            known = sorted({facts.device for _, facts in there})
            raise UsageError(
                f"nothing in this release was measured on a device {wanted!r}{nearest(wanted, known)}, and "
                "no device file describes it",
                fix=f"it has bundles for {', '.join(known)}; or describe yours: --devices FOLDER",
            )
        obstacles = [(d, f, _obstacle(f, device, operators)) for d, f in asked]
        fitting = [(d, f) for d, f, obstacle in obstacles if not obstacle]
        reason = f"not measured on {wanted}, but it fits what its device file says"
        if not fitting:
            told = sorted({f"{f.variant}.{f.format}: {obstacle}" for _, f, obstacle in obstacles})
            raise UsageError(f"nothing in this release fits {wanted}", fix="\n  ".join(told))
    ranked = sorted(fitting, key=lambda pair: _rank(pair[1], device))
    descriptor, facts = ranked[0]
    others = {(each.variant, each.format): each for _, each in reversed(ranked)}
    others.pop((facts.variant, facts.format))
    kept = sorted(others.values(), key=lambda each: _rank(each, device))
    return Choice(descriptor=descriptor, facts=facts, reason=reason, others=tuple(kept))


def _rank(facts: Facts, device: Device | None) -> tuple[bool, bool, int, bool, str]:
    """Gates, then optimized, then small; of the same file, what was made for the device's own runtime."""
    own = device.runtimes.get(facts.format) if device else None
    foreign = facts.runtime.partition(" ")[0] != own
    return facts.gates == "fail", facts.variant == "float", facts.size_bytes, foreign, facts.device


def _obstacle(facts: Facts, device: Device, operators: frozenset[str] | None) -> str:
    """Why a bundle that was made for another device does not fit; empty if it does."""
    if facts.compiled:
        return f"compiled for {facts.device}"
    if facts.format not in device.runtimes:
        return f"{device.name} has no runtime for {facts.format}"
    limits = device.limits
    if limits.flash is not None and facts.size_bytes > limits.flash:
        return f"{facts.size_bytes:,} bytes, and {device.name} has {limits.flash:,} bytes of flash"
    if limits.ram is not None and facts.arena_bytes is not None and facts.arena_bytes > limits.ram:
        return f"needs {facts.arena_bytes:,} bytes, and {device.name} has {limits.ram:,} bytes of RAM"
    if operators is not None and facts.operators is not None:
        missing = sorted(set(facts.operators) - operators)
        if missing:
            return f"{device.name} does not have {', '.join(missing)}"
    return ""


def _listed(facts: Sequence[Facts]) -> str:
    return ", ".join(sorted({f"{each.variant}.{each.format}" for each in facts})) or "no bundles"
