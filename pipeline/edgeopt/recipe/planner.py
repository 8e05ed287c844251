"""From a recipe to the chains of stages that carry it out. Pure: nothing is built, no framework imported.

An intent such as ``quantize: int8`` is turned into stages by finding a path. Every stage says which
formats it accepts and produces and which intents it fulfils; the plan is the shortest chain from
the source format to the target that fulfils every intent exactly once. What no chain can do is
told by name, with what can be had instead.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.devices.device import Device
from edgeopt.devices.lint import expected
from edgeopt.errors import UsageError
from edgeopt.formats.known import artifact_formats, factory_format, format_named
from edgeopt.formats.source import check_weights, inspect
from edgeopt.model import Model
from edgeopt.plugin import Stage, Trial
from edgeopt.recipe.document import Intent, ModelPart, Recipe, Variant
from edgeopt.results import Breakdown

BASELINE = "float"
"""The variant that is always built, because everything else is compared with it."""


class Branch(NamedTuple):
    """One variant in one format: the stages that make it, and where it will be measured."""

    variant: str
    format: str
    stages: tuple[Stage, ...]
    devices: tuple[Device, ...]

    @property
    def name(self) -> str:
        return f"{self.variant}.{self.format}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its stages, in order."""
        return tuple(registry.plugin_name(stage) for stage in self.stages)


class Step(NamedTuple):
    """One finished stage of a branch, with what it remarked and tried."""

    stage: Stage
    model: Model
    digest: str
    cached: bool
    notes: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    arithmetic: Mapping[str, float] = {}
    """MACs, parameters and sparsity, where the file tells."""
    breakdown: Breakdown | None = None
    """Where the bytes of a finished file go."""


@dataclass
class Built:
    """How far one branch came: all its steps, or the reason why not."""

    branch: Branch
    steps: list[Step] = field(default_factory=list)
    failure: str = ""

    @property
    def complete(self) -> bool:
        return len(self.steps) == len(self.branch.stages)

    @property
    def next_stage(self) -> Stage:
        return self.branch.stages[len(self.steps)]

    @property
    def source_step(self) -> Step | None:
        """The last step before any intent was carried out; None where the source itself is that."""
        before = None
        for step in self.steps:
            if step.stage.fulfils:
                break
            before = step
        return before


class Impossible(NamedTuple):
    """One variant in one format that cannot be had, why, and the way out."""

    variant: str
    format: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Plan:
    """Everything that would run."""

    recipe: Recipe
    source: Model
    branches: tuple[Branch, ...]
    impossible: tuple[Impossible, ...]
    notes: tuple[str, ...]

    def demand_possible(self) -> None:
        """Refuse a plan with impossible branches.

        Raises:
            UsageError: naming each of them.
        """
        if self.impossible:
            lines = [f"{i.variant} as {i.format}: {i.reason}\n    {i.fix}" for i in self.impossible]
            raise UsageError(
                f"{self.recipe.file}: {len(lines)} of the requested artifacts cannot be had:\n  "
                + "\n  ".join(lines),
                fix="change the recipe, or build the rest with --keep-going",
            )


def make_plan(recipe: Recipe) -> Plan:
    """Find the chain of every variant and format of a recipe.

    Raises:
        UsageError: when the model file is not what it claims to be.
    """
    source, notes = _source(recipe.model)
    unfit = dict(_unfit(recipe))
    branches: list[Branch] = []
    impossible: list[Impossible] = []
    for variant in recipe.variants:
        for target in recipe.formats:
            found = _branch(recipe, source.format, variant, target, unfit)
            if isinstance(found, Branch):
                branches.append(found)
            else:
                impossible.append(found)
    for device in recipe.devices:
        absent = [target for target in recipe.formats if target not in device.runtimes]
        if absent:
            notes.append(f"device {device.name} has no runtime for {', '.join(absent)}: not measured there")
    for where, reason in unfit.items():
        what = "is built, but not measured" if where.variant == BASELINE else "will fail"
        notes.append(f"{where.variant}.{where.format} {what} on {where.device}: {reason}")
    return Plan(recipe, source, tuple(branches), tuple(impossible), tuple(notes))


class Placed(NamedTuple):
    """One variant in one format on one device."""

    variant: str
    format: str
    device: str


def _unfit(recipe: Recipe) -> Iterator[tuple[Placed, str]]:
    """Artifacts of which a device's limits already say, before any file is there, that they will not run."""
    for device in recipe.devices:
        for variant in recipe.variants:
            if variant.stages is not None:
                continue  # only the file will show what they make of it
            schemes = {intent.scheme for intent in variant.intents if intent.name == "quantize"}
            for target in recipe.formats:
                reason = expected(device, target, schemes)
                if target in device.runtimes and reason:
                    yield Placed(variant.name, target, device.name), reason


def _source(part: ModelPart) -> tuple[Model, list[str]]:
    if part.path is None:
        assert part.factory is not None  # ModelPart has checked it
        if part.weights is not None:
            check_weights(part.weights, trust=part.trust)
            return _from_factory(part, part.weights), []
        folder = part.factory.folder
        if folder is None:
            raise UsageError(
                f"factory {part.factory.target!r} is an installed package and no weights are given",
                fix="add weights: FILE, so that there is a trained model to optimize",
            )
        return _from_factory(part, folder), []
    source = inspect(part.path, trust=part.trust)
    model = source.model.model_copy(update={"inputs": part.inputs or source.model.inputs})
    if not model.inputs:
        raise UsageError(
            f"{part.path} does not tell the shape of its inputs",
            fix="add to the recipe's model: inputs: [{name: input, shape: [1, 3, 32, 32], layout: NCHW}]",
        )
    return model, list(source.notes)


def _from_factory(part: ModelPart, path: Path) -> Model:
    assert part.factory is not None
    return Model(format=factory_format(), path=path, inputs=part.inputs, code=part.factory.folder)


def _branch(
    recipe: Recipe, source: str, variant: Variant, target: str, unfit: Mapping[Placed, str]
) -> Branch | Impossible:
    def cannot(reason: str, fix: str) -> Impossible:
        return Impossible(variant.name, target, reason, fix)

    try:
        if variant.stages is not None:
            stages: tuple[Stage, ...] | None = _listed(variant.stages, source, target, recipe)
        else:
            intents = [intent.as_for(target) for intent in variant.intents]
            stages = find_chain(source, target, intents, recipe.model)
            if stages is None:
                asked = [intent for intent in intents if not intent.optional]
                stages = find_chain(source, target, asked, recipe.model)
    except UsageError as error:
        return cannot(error.message, error.fix)
    if stages is None:
        return cannot(*_why_not(source, variant, target))
    for stage in stages:
        if missing := stage.missing():
            extra = f"edgeopt[{stage.extra}]" if stage.extra else " ".join(missing)
            return cannot(
                f"{registry.plugin_name(stage)} needs {', '.join(missing)}, not installed here",
                f"pip install '{extra}'",
            )
        if stage.needs_calibration and recipe.calibration is None:
            return cannot(
                f"{registry.plugin_name(stage)} needs calibration data",
                "add data.calibration: {uses: npz, with: {path: calibration.npz}}",
            )
        if stage.needs_training and recipe.train is None:
            return cannot(
                f"{registry.plugin_name(stage)} needs training data",
                "add data.train: {uses: npz, with: {path: train.npz}}; it needs no labels to learn "
                "from the source model",
            )
    devices = tuple(device for device in recipe.devices if target in device.runtimes)
    if not devices:
        return cannot(
            f"no device of the recipe has a runtime for {target}", "add a device that has, such as host"
        )
    if variant.name == BASELINE:
        # Nobody asked for float on a device that is made for integers: there it is only the baseline.
        devices = tuple(device for device in devices if (variant.name, target, device.name) not in unfit)
    return Branch(variant.name, target, stages, devices)


def find_chain(
    source: str, target: str, intents: Sequence[Intent], model: ModelPart
) -> tuple[Stage, ...] | None:
    """The shortest chain from ``source`` to ``target`` that fulfils every intent exactly once.

    Ties are broken by the stages' declared preference, then by name, so that a plan is stable.
    Dijkstra's search over pairs of a format and the intents still open.

    Raises:
        UsageError: the stage that fulfils an intent refuses its options.
    """
    stages = registry.plugins(Stage)
    start = (source, frozenset(range(len(intents))))
    queue: list[tuple[tuple[int, int, tuple[str, ...]], str, frozenset[int]]] = [((0, 0, ()), *start)]
    done: set[tuple[str, frozenset[int]]] = set()
    while queue:
        (length, dislike, chain), here, still_open = heapq.heappop(queue)
        if here == target and not still_open:
            return tuple(instance(stages[name], intents, model) for name in chain)
        if (here, still_open) in done:
            continue
        done.add((here, still_open))
        for name, stage, fulfilled in _next_steps(stages, here, still_open, intents):
            cost = (length + 1, dislike - stage.preference, (*chain, name))
            heapq.heappush(queue, (cost, stage.produces, still_open - fulfilled))
    return None


def _next_steps(
    stages: dict[str, type[Stage]], here: str, still_open: frozenset[int], intents: Sequence[Intent]
) -> Iterator[tuple[str, type[Stage], frozenset[int]]]:
    for name, stage in stages.items():
        if here not in stage.accepts:
            continue
        fulfilled = frozenset(
            i for i in still_open if intents[i].scheme in stage.fulfils.get(intents[i].name, frozenset())
        )
        waits = any(intents[i].name in stage.after for i in still_open - fulfilled)
        if (fulfilled or not stage.fulfils) and not waits:
            yield name, stage, fulfilled


def instance(stage: type[Stage], intents: Sequence[Intent], model: ModelPart) -> Stage:
    """A stage with the options of its intents; fields named as in the recipe's model part get those.

    Raises:
        UsageError: the stage refuses its options.
    """
    schemes = {scheme for every in stage.fulfils.values() for scheme in every}
    options: dict[str, object] = {
        name: getattr(model, name)
        for name in stage.model_fields
        # 'weights' is the file of a model, and how pruning calls what it sets to zero.
        if name in ModelPart.model_fields and name not in schemes
    }
    for intent in intents:
        if intent.scheme in stage.fulfils.get(intent.name, frozenset()):
            options |= intent.options
    try:
        return stage.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        known = nearest(where, list(stage.model_fields)) if first["type"] == "extra_forbidden" else ""
        told = f"unknown option{known}" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise UsageError(
            f"{stage.__module__.rpartition('.')[2]} refuses option {where!r}: {told}",
            fix="docs/recipe.md lists its options",
        ) from error


def _listed(stages: tuple[Stage, ...], source: str, target: str, recipe: Recipe) -> tuple[Stage, ...]:
    """The stages a recipe lists itself, with the way to the first one found where it is needed."""
    first = stages[0] if stages else None
    before: tuple[Stage, ...] = ()
    if first is not None and source not in first.accepts:
        chains = [
            chain
            for fmt in sorted(first.accepts)
            if (chain := find_chain(source, fmt, (), recipe.model)) is not None
        ]
        if not chains:
            raise UsageError(
                f"{registry.plugin_name(first)} accepts {', '.join(sorted(first.accepts))}, not {source}",
                fix="put a stage that converts before it",
            )
        before = min(chains, key=len)
    here = source
    for stage in (*before, *stages):
        if here not in stage.accepts:
            raise UsageError(
                f"{registry.plugin_name(stage)} accepts {', '.join(sorted(stage.accepts))}, not {here}",
                fix="put a stage that converts before it",
            )
        here = stage.produces
    after = find_chain(here, target, (), recipe.model)
    if after is None:
        raise UsageError(
            f"the listed stages end with {here}, and nothing leads from there to {target}", fix=""
        )
    return (*before, *stages, *after)


def _why_not(source: str, variant: Variant, target: str) -> tuple[str, str]:
    """The reason that no chain exists, and what can be had instead."""
    floats = reachable(source, ())
    if target not in floats:
        named = [name for name in artifact_formats() if name in floats]
        instead = f"remove {target} from formats"
        if named:
            instead += f" ({source} can become {', '.join(named)})"
        if advice := format_named(source).advice:
            instead += f", or {advice}"
        return f"no chain of stages leads from {source} to {target}", instead
    asked = [intent for intent in variant.intents if not intent.optional]
    wanted = ", ".join(f"{intent.name} {intent.scheme}" for intent in asked)
    have = [name for name in artifact_formats() if name in reachable(source, asked)]
    return (
        f"no stage can {wanted} on the way from {source} to {target}",
        f"it can be had as {', '.join(have)}" if have else "no format of this model can have it",
    )


def reachable(source: str, intents: Sequence[Intent]) -> set[str]:
    stages = registry.plugins(Stage)
    start = (source, frozenset(range(len(intents))))
    seen, waiting = {start}, [start]
    while waiting:
        here, still_open = waiting.pop()
        for _, stage, fulfilled in _next_steps(stages, here, still_open, intents):
            there = (stage.produces, still_open - fulfilled)
            if there not in seen:
                seen.add(there)
                waiting.append(there)
    return {name for name, still_open in seen if not still_open}
