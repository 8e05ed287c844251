"""From a recipe to chains of stages. Nothing is built, and no framework is imported.

The plan has, for every variant and format, the shortest chain from the source format to the target that
fulfils every intent exactly once. Requests without such a chain are reported by name, with alternatives.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.devices.device import Device, devices_with
from edgeopt.devices.lint import expected
from edgeopt.errors import UsageError, install
from edgeopt.formats.known import artifact_formats, factory_format, format_named
from edgeopt.formats.source import check_weights, inspect
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Stage
from edgeopt.recipe.chains import complete_chain, find_chain, reachable
from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.plan import Branch, Impossible, Plan
from edgeopt.recipe.recipe import Recipe, Variant

BASELINE = "float"
"""The variant that is always built, as the reference of all others."""


def make_plan(recipe: Recipe) -> Plan:
    """Find the chain of stages for every variant and format of a recipe.

    Raises:
        UsageError: the model file is invalid or does not declare its input shapes, or the recipe preprocesses
            an input that the model does not have.
    """
    source, notes = source_of(recipe)
    notes[:0] = recipe.notes
    incompatible = dict(_incompatible(recipe))
    branches: list[Branch] = []
    impossible: list[Impossible] = []
    for variant in recipe.variants:
        if variant.search is not None:
            trials = variant.search.part.budget.trials
            notes.append(
                f"{variant.name} is found by searching, with at most {trials} trials, before it is built"
            )
            continue
        for target in variant.formats or recipe.formats:
            planned = _branch(recipe, source, variant, target, incompatible)
            if isinstance(planned, Branch):
                branches.append(planned)
            else:
                impossible.append(planned)
    for device in recipe.devices:
        absent = [target for target in recipe.formats if target not in device.runtimes]
        if absent:
            notes.append(f"device {device.name} has no runtime for {', '.join(absent)}: not measured there")
    notes += [note for branch in branches for note in _bound(branch, recipe.devices)]
    for where, reason in incompatible.items():
        outcome = "is built, but not measured" if where.variant == BASELINE else "will fail"
        notes.append(f"{where.variant}.{where.format} {outcome} on {where.device}: {reason}")
    return Plan(recipe, source, tuple(branches), tuple(impossible), tuple(notes))


class Placement(NamedTuple):
    """One variant in one format on one device."""

    variant: str
    format: str
    device: str


def _bound(branch: Branch, devices: Sequence[Device]) -> Iterator[str]:
    """Notes on the devices whose runtime of the format does not run what a stage of the branch makes."""
    for device in devices:
        if branch.format in device.runtimes and not branch.runs_on(device):
            yield f"{branch.name} is not measured on {device.name}: {branch.bound}"


def _incompatible(recipe: Recipe) -> Iterator[tuple[Placement, str]]:
    """Artifacts that a device's declared limits rule out before any file exists, with the reason."""
    for device in recipe.devices:
        for variant in recipe.variants:
            if variant.stages is not None:
                continue  # the precision of its artifact is unknown until it is built
            schemes = {intent.scheme for intent in variant.intents if intent.name == "quantize"}
            for target in recipe.formats:
                reason = expected(device, target, schemes)
                if target in device.runtimes and reason:
                    yield Placement(variant.name, target, device.name), reason


def source_of(recipe: Recipe) -> tuple[Model, list[str]]:
    """The source model and the notes of its format.

    Raises:
        UsageError: as ``make_plan``.
    """
    source, notes = _source(recipe)
    names = [spec.name for spec in source.inputs]
    problems = Problems(recipe.file, recipe.positions)
    for name in recipe.model.preprocess if isinstance(recipe.model.preprocess, Mapping) else ():
        if name not in names:
            problems.add(
                ("model", "preprocess", name), f"the model has no input {name!r}{nearest(name, names)}"
            )
    if problems:
        raise problems.error()
    return source, notes


def _source(recipe: Recipe) -> tuple[Model, list[str]]:
    part = recipe.model
    if part.path is None:
        assert part.factory is not None  # checked by ModelPart
        if part.weights is not None:
            notes = check_weights(part.weights, trust=part.trust)
            return _from_factory(part, part.weights), list(notes)
        code = part.factory.source()
        if code is None:
            raise UsageError(
                f"factory {part.factory.target!r} is in an installed package, and no weights are given",
                fix="add weights: FILE, the trained weights of the model",
            )
        return _from_factory(part, code), []
    source = (
        recipe.inspection() if recipe.inspection else inspect(part.path, trust=part.trust, code=part.code)
    )
    described = {"inputs": _inputs(part.inputs, source.model.inputs), "code": part.code}
    model = source.model.model_copy(update=described)
    if not model.inputs:
        raise UsageError(
            f"{part.path} does not declare its input shapes",
            fix="add to the recipe's model: inputs: [{name: input, shape: [1, 3, 32, 32], layout: NCHW}]",
        )
    return model, list(source.notes)


def _inputs(described: Sequence[TensorSpec], own: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs that a recipe describes, in the order of the file's own if they have the same names."""
    by_name = {spec.name: spec for spec in described}
    if by_name.keys() == {spec.name for spec in own}:
        return tuple(by_name[spec.name] for spec in own)
    return tuple(described or own)


def _from_factory(part: ModelPart, path: Path) -> Model:
    assert part.factory is not None
    return Model(format=factory_format(), path=path, inputs=part.inputs, code=part.factory.folder)


def _branch(
    recipe: Recipe, model: Model, variant: Variant, target: str, incompatible: Mapping[Placement, str]
) -> Branch | Impossible:
    source = model.format

    def impossible(reason: str, fix: str) -> Impossible:
        return Impossible(variant.name, target, reason, fix)

    try:
        if variant.stages is not None:
            stages: tuple[Stage, ...] | None = complete_chain(variant.stages, source, target, recipe.model)
        else:
            intents = [intent.as_for(target) for intent in variant.intents]
            stages = find_chain(source, target, intents, recipe.model)
            if stages is None:
                # Intents applied by default are dropped if this format does not support them.
                requested = [intent for intent in intents if not intent.optional]
                stages = find_chain(source, target, requested, recipe.model)
        if stages:
            stages[0].check_source(model)
    except UsageError as error:
        return impossible(error.message, error.fix)
    if stages is None:
        return impossible(*_why_not(source, variant, target))
    for stage in stages:
        if missing := stage.missing():
            return impossible(
                f"{registry.plugin_name(stage)} needs {', '.join(missing)}, which is not installed",
                install(stage.extra) if stage.extra else f"pip install {' '.join(missing)}",
            )
        if stage.needs_calibration and recipe.calibration is None:
            return impossible(
                f"{registry.plugin_name(stage)} needs calibration data",
                "add data.calibration: {uses: npz, with: {path: calibration.npz}}; without samples, make the "
                "file with: edgeopt synthesize",
            )
        if stage.needs_training and recipe.train is None:
            return impossible(
                f"{registry.plugin_name(stage)} needs training data",
                "add data.train: {uses: npz, with: {path: train.npz}}; labels are not needed to distil "
                "the source model",
            )
    devices = tuple(device for device in recipe.devices if target in device.runtimes)
    if not devices:
        return impossible(
            f"no device of the recipe has a runtime for {target}", "add a device that has one, such as host"
        )
    if variant.name == BASELINE:
        # On an integer-only device, float is just the reference: that it cannot run there is not a failure.
        devices = tuple(
            device for device in devices if (variant.name, target, device.name) not in incompatible
        )
    branch = Branch(variant.name, target, stages, devices)
    running = tuple(filter(branch.runs_on, devices))
    if devices and not running and branch.binding is not None:
        only = branch.binding.runtimes
        having = ", ".join(devices_with(target, only)) or "one of your own"
        return impossible(
            f"{branch.bound}, and no device has it", f"add a device that has it, such as {having}"
        )
    return branch._replace(devices=running)


def _why_not(source: str, variant: Variant, target: str) -> tuple[str, str]:
    """Reason and fix for a variant without a chain."""
    convertible = reachable(source, ())
    if target not in convertible:
        alternatives = [name for name in artifact_formats() if name in convertible]
        fix = f"remove {target} from formats"
        if alternatives:
            fix += f" ({source} can be converted to {', '.join(alternatives)})"
        if advice := format_named(source).advice:
            fix += f", or {advice}"
        return f"no chain of stages leads from {source} to {target}", fix
    requested = [intent for intent in variant.intents if not intent.optional]
    wording = ", ".join(f"{intent.name} {intent.scheme}" for intent in requested)
    available = [name for name in artifact_formats() if name in reachable(source, requested)]
    return (
        f"no stage supports {wording} on the way from {source} to {target}",
        f"it is available as {', '.join(available)}" if available else "no format of this model supports it",
    )
