"""The space of a search: what may vary, and the variant of a recipe that each point stands for. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, get_args

from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.devices.lint import expected
from edgeopt.errors import RecipeError, UsageError
from edgeopt.plugin import Stage
from edgeopt.plugin.base import canonical
from edgeopt.recipe.plan import Plan
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.searching import DIMENSIONS, Search
from edgeopt.recipe.variants import variant_of

NONE = "none"
"""The scheme of a variant that is not quantized."""
WHOLE = 8
"""Bits of a weight in int8, which layers have unless an allocation says otherwise."""
VARIED: dict[str, tuple[Any, ...]] = {
    "quantize": ("int8", "dynamic_int8", "float16", "int4"),
    "bits": (4, 5, 6, 7, WHOLE),
    "prune": (0, 0.25, 0.5),
    "equalize": (False, True),
    "rounding": (False, True),
    "bias_correction": (False, True),
    "calibrator": ("minmax", "percentile", "mse"),
    "per_channel": (True, False),
    "coarsen": (False, 5, 4, 3),
}
"""The values that are tried by default, as far as the model and its formats have them."""
TRAINING = ({"epochs": 3}, {"epochs": 12}, {"epochs": 48})
"""Trainings of pruned candidates: the longer ones are for survivors of the shorter."""
BY_LAYER = ("int8", "dynamic_int8")
"""Schemes of 8 bits in which single layers may have other precisions."""
ORDERED = frozenset({"bits", "prune"})
WEIGHT_BITS = {"int8": 8, "dynamic_int8": 8, "int4": 4}
"""Schemes that round weights to integers, and the width that repairs must prepare them for."""

Point: TypeAlias = tuple[int, ...]
"""The index of the chosen value in each dimension."""
Layers: TypeAlias = Mapping[str, str]
"""The precision of the layers that differ from int8, by name."""
Allocations: TypeAlias = Mapping[tuple[str, float], Layers]
"""By format and mean number of bits."""


NO_LAYERS: Layers = MappingProxyType({})
NO_ALLOCATIONS: Allocations = MappingProxyType({})


class Dimension(NamedTuple):
    """One thing that varies; ``ordered`` if neighbouring values are alike."""

    name: str
    choices: tuple[Any, ...]
    ordered: bool = False


class Candidate(NamedTuple):
    """One variant in one format, as options that a recipe may have in ``optimize``."""

    format: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Equal for points that stand for the same variant."""
        return canonical([self.format, self.options])


@dataclass(frozen=True)
class Space:
    """All points of a search."""

    dimensions: tuple[Dimension, ...]
    precisions: Mapping[tuple[str, str], frozenset[str]]
    """The precisions that single layers may have, by format and scheme."""

    def values(self, point: Point) -> dict[str, Any]:
        """The value of every dimension at a point."""
        return {each.name: each.choices[at] for each, at in zip(self.dimensions, point, strict=True)}

    def candidate(self, point: Point, allocations: Allocations = NO_ALLOCATIONS) -> Candidate:
        """The variant that a point stands for."""
        values = DIMENSIONS | self.values(point)
        possible = self.precisions.get((values["format"], values["quantize"]), frozenset())
        layers = allocations.get((values["format"], values["bits"]), NO_LAYERS)
        layers = {name: precision for name, precision in layers.items() if precision in possible}
        return Candidate(values["format"], options_of(values, layers))

    def points(self) -> Iterator[Point]:
        """All points; several may stand for one variant."""
        return product(*(range(len(each.choices)) for each in self.dimensions))

    @property
    def size(self) -> int:
        return math.prod(len(each.choices) for each in self.dimensions)

    def choices(self, name: str) -> tuple[Any, ...]:
        """The values of a dimension, or the fixed one."""
        return next((each.choices for each in self.dimensions if each.name == name), (DIMENSIONS.get(name),))

    @property
    def start(self) -> Point:
        """The point from which one thing at a time is varied: the usual value of each dimension."""
        return self.nearest({})

    def nearest(self, values: Mapping[str, Any]) -> Point:
        """The point with these values, and the usual ones of the other dimensions."""
        wanted = DIMENSIONS | dict(values)
        return tuple(
            each.choices.index(wanted[each.name]) if wanted.get(each.name) in each.choices else 0
            for each in self.dimensions
        )


def options_of(values: Mapping[str, Any], layers: Layers = NO_LAYERS) -> dict[str, Any]:
    """The variant for the values of all dimensions; what has no effect is left out."""
    scheme, options = values["quantize"], dict[str, Any]()
    if values["prune"]:
        options["prune"] = {"channels": values["prune"]}
    training = values["finetune"]
    # Training that neither repairs pruning nor sees the quantization only makes another float model.
    if training and (values["prune"] or (isinstance(training, dict) and training.get("quantization_aware"))):
        options["finetune"] = dict(training) if isinstance(training, dict) else True
    width = WEIGHT_BITS.get(scheme)
    layers = layers if scheme in BY_LAYER else NO_LAYERS
    if width is not None:
        by_tensor = {} if values["per_channel"] else {"per_channel": False}
        fewer = {name: 4 for name, precision in layers.items() if precision == "int4"}
        if values["equalize"]:
            options["equalize"] = True
        if values["rounding"]:
            options["rounding"] = {"bits": width} | by_tensor | ({"layers": fewer} if fewer else {})
        elif values["bias_correction"]:  # rounding leaves no shift to correct
            options["bias_correction"] = {"bits": width} | by_tensor
        quantize: dict[str, Any] = {"scheme": scheme} | by_tensor
        if scheme == "int8" and values["calibrator"]:
            quantize["calibrator"] = values["calibrator"]
        if layers:
            quantize["layers"] = dict(layers)
        options["quantize"] = scheme if len(quantize) == 1 else quantize
        if scheme == "int8" and values.get("coarsen"):
            options |= {"coarsen": {"bits": values["coarsen"]}, "compress": True}
    elif scheme != NONE:
        options["quantize"] = scheme
    return options


def space_of(recipe: Recipe, name: str, search: Search) -> Space:
    """The space of a search, without the values that no format of the recipe has.

    Raises:
        RecipeError: ``over`` has an unknown name or value, or a value that no format of the recipe has.
        UsageError: only one variant is left.
    """
    over = search.part.over
    problems = Problems(recipe.file, recipe.positions)
    loc = ("optimize", name, "search", "over")
    for key in over:
        if key not in DIMENSIONS:
            problems.add((*loc, key), f"{key!r} does not vary{nearest(key, sorted(DIMENSIONS))}")
    chosen = {key: over[key] for key in DIMENSIONS if key in over} or _usual(recipe)
    plan, reasons = _planned(recipe, chosen, lambda at, why: problems.add((*loc, *at), why))
    reasons |= _not_run(recipe, search, chosen.get("quantize", ()))
    if problems:
        raise problems.error()
    precisions = {
        (target, scheme): _precisions(plan, target, scheme)
        for target in recipe.formats
        for scheme in BY_LAYER
    }
    kept: dict[str, tuple[Any, ...]] = {}
    for key, values in chosen.items():
        possible = [value for value in values if _is_possible(recipe, key, value, reasons)]
        if key == "bits" and not over:
            possible = [value for value in possible if _has_width(value, precisions)]
        for index, value in enumerate(values if over else ()):
            if value not in possible:
                why = reasons[key, canonical(value), recipe.formats[0]]
                problems.add((*loc, key, index), f"{value!r} is not available: {why}")
            elif key == "bits" and not _has_width(value, precisions):
                problems.add((*loc, key, index), f"no format of the recipe has layers of {value:g} bits")
        kept[key] = tuple(possible)
    if problems:
        raise problems.error()
    dimensions = [Dimension("format", recipe.formats)] if len(recipe.formats) > 1 else []
    dimensions += [Dimension(key, values, key in ORDERED) for key, values in kept.items() if len(values) > 1]
    fixed = [Dimension(key, values) for key, values in kept.items() if len(values) == 1]
    fixed += [Dimension("format", recipe.formats)] if len(recipe.formats) == 1 else []
    space = Space((*dimensions, *fixed), precisions)
    if space.size == 1:
        only = space.candidate(space.start)
        raise UsageError(
            f"{recipe.file}: the search {name} has nothing to vary: the only candidate is {only.options}",
            fix="give 'over' several values, or write this variant instead of the search",
        )
    return space


def _usual(recipe: Recipe) -> dict[str, tuple[Any, ...]]:
    """The default values. With training data, pruned candidates are trained; without, little is pruned."""
    return VARIED | ({"finetune": TRAINING} if recipe.train is not None else {"prune": (0, 0.25)})


def _planned(
    recipe: Recipe, chosen: Mapping[str, Sequence[Any]], refuse: Any
) -> tuple[Plan, dict[tuple[str, str, str], str]]:
    """A plan with every value on its own, and for each value and format why it is not available."""
    variants, known = [], dict[str, tuple[str, str]]()
    for key, values in {"quantize": ("int8",), **chosen}.items():
        for index, value in enumerate(values):
            if problem := _problem(key, value):
                refuse((key, index), problem)
                continue
            needed = {"prune": 0.5} if key == "finetune" and value else {}
            title = f"{key}-{index}"
            try:
                variants.append(variant_of(recipe, title, options_of(DIMENSIONS | needed | {key: value})))
            except RecipeError as error:
                refuse((key, index), error.problems[0].message)
                continue
            known[title] = key, canonical(value)
    plan = make_plan(replace(recipe, variants=tuple(variants), gates=()))
    reasons = {(*known[each.variant], each.format): f"{each.reason}; {each.fix}" for each in plan.impossible}
    return plan, reasons


def _not_run(recipe: Recipe, search: Search, schemes: Sequence[object]) -> dict[tuple[str, str, str], str]:
    """The schemes that a device does not run on which the search measures, by format, with the reason."""
    named = {name for gate in search.limits for name in gate.devices}
    reasons = {}
    for scheme, target in product(schemes, recipe.formats):
        for device in recipe.devices:
            used = target in device.runtimes and (not named or device.name in named)
            if used and (why := expected(device, target, {str(scheme)} - {NONE})):
                reasons["quantize", canonical(scheme), target] = f"on {device.name}, {why}"
    return reasons


def _problem(key: str, value: object) -> str:
    """Why a value cannot be one of a dimension; '' if it can."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in ("equalize", "rounding", "bias_correction", "per_channel") and not isinstance(value, bool):
        return f"expected true or false, not {value!r}"
    if key in ("quantize", "calibrator") and not isinstance(value, str):
        return f"expected a name, not {value!r}"
    if key == "prune" and not (number and 0 <= float(str(value)) < 1):
        return f"expected a fraction of the channels from 0 to below 1, not {value!r}"
    if key == "bits" and not (number and 4 <= float(str(value)) <= 32):
        return f"expected a mean number of bits from 4 to 32, not {value!r}"
    if key == "coarsen" and value is not False and not (number and 1 <= float(str(value)) <= 8):
        return f"expected false, or a mean number of bits from 1 to 8, not {value!r}"
    if key == "finetune" and not isinstance(value, bool | dict):
        return f"expected false, true or a mapping of options, not {value!r}"
    return ""


def _is_possible(recipe: Recipe, key: str, value: Any, reasons: Mapping[tuple[str, str, str], str]) -> bool:
    return not all((key, canonical(value), target) in reasons for target in recipe.formats)


def _has_width(bits: float, precisions: Mapping[tuple[str, str], frozenset[str]]) -> bool:
    """Whether layers of some format may have fewer bits, or more, so that their mean is this."""
    needed = "int4" if bits < WHOLE else "float32"
    return bits == WHOLE or any(needed in each for each in precisions.values())


def _precisions(plan: Plan, target: str, scheme: str) -> frozenset[str]:
    """The precisions of single layers that the stage of a format offers which quantizes by a scheme."""
    for branch in plan.branches:
        stage = next((stage for stage in branch.stages if "quantize" in stage.fulfils), None)
        if branch.format == target and stage is not None and stage.options().get("scheme") == scheme:
            return _literals(stage)
    return frozenset()


def _literals(stage: Stage) -> frozenset[str]:
    field = type(stage).model_fields.get("layers")
    arguments = get_args(field.annotation) if field is not None else ()
    return frozenset(map(str, get_args(arguments[1]))) if len(arguments) == 2 else frozenset()
