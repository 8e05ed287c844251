"""What to make of a model: variants, formats and devices, as asked for, or as its purpose and data allow."""

from dataclasses import replace
from typing import Any

from edgeopt.commands.start.given import Given, merged
from edgeopt.commands.start.trial import Place
from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.devices.device import HOST, load_device
from edgeopt.devices.readiness import readiness
from edgeopt.errors import UsageError
from edgeopt.formats.known import artifact_formats
from edgeopt.plugin import Stage
from edgeopt.recipe.plan import Impossible
from edgeopt.recipe.planner import BASELINE, make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.starter.data import Parts
from edgeopt.recipe.starter.draft import Draft, recipe_text
from edgeopt.recipe.starter.goals import Goal

CALIBRATED = "int8"
UNCALIBRATED = "dynamic_int8"
"""The variant of a model with data to calibrate on, and of one without."""


def with_targets(
    draft: Draft, parts: Parts | None, given: Given, goal: Goal | None, place: Place, *, complete: bool
) -> Draft:
    """With datasets, variants, formats and devices.

    Raises:
        UsageError: a variant, format or device is unknown, or int8 needs samples that are not given.
    """
    for name in given.formats:
        if name not in artifact_formats():
            raise UsageError(f"--format {name}: no such format{nearest(name, artifact_formats())}")
    for name in given.devices:
        load_device(name, place.device_folders)
    wants_int8 = given.int8 or (goal is not None and goal.only_int8)
    if parts is None and complete and wants_int8:
        option = "--int8" if given.int8 else f"--for {given.goal}"
        raise UsageError(
            f"{option} needs samples: the ranges of 8-bit numbers are measured on them",
            fix=f"add them, arrays x and y or a folder of images: {given.command('--data', 'samples.npz')}",
        )
    notes = list(draft.notes)
    devices = tuple(given.devices) or (HOST,)
    if goal is not None and not given.devices:
        if goal.device is not None and readiness(load_device(goal.device)).state == "ready":
            devices = (goal.device,)
        else:
            notes.append(f"measured on this machine, not on {goal.target.title}; {goal.target.hint}")
    usual = CALIBRATED if parts is not None or wants_int8 or not complete else UNCALIBRATED
    names = (*given.variants, *([CALIBRATED] if given.int8 else [])) or (usual,)
    variants = _variants(names, goal)
    target = given.goal if devices == (HOST,) else None
    draft = replace(draft, formats=tuple(given.formats) or draft.formats, devices=devices, target=target)
    if parts is not None:
        notes.append(parts.note)
        return replace(
            draft,
            calibration=parts.calibration,
            evaluation=parts.evaluation,
            variants=variants,
            notes=tuple(notes),
        )
    if complete:
        notes.append(
            "no data: outputs are compared with the model's own on random inputs, which shows nothing about "
            "accuracy; --data adds int8 and an accuracy"
        )
    asked = complete or goal is not None or given.variants or given.int8
    return replace(draft, random=complete, variants=variants if asked else None, notes=tuple(notes))


def _variants(names: tuple[str, ...], goal: Goal | None) -> dict[str, dict[str, Any]]:
    """Variants named after their scheme of quantization."""
    schemes = {
        scheme
        for stage in registry.plugins(Stage).values()
        for scheme in stage.fulfils.get("quantize", frozenset())
    }
    variants: dict[str, dict[str, Any]] = {}
    for name in names:
        if name not in {*schemes, BASELINE}:
            raise UsageError(
                f"--variant {name}: no scheme of quantization{nearest(name, [*schemes, BASELINE])}",
                fix="other variants are written in a recipe: edgeopt init MODEL",
            )
        if name != BASELINE:
            variants[name] = {"quantize": goal.int8 if goal is not None and name == CALIBRATED else name}
    return variants


def possible(draft: Draft, given: Given, place: Place) -> Draft:
    """Without the usual formats and variants that cannot be produced here, each with a note.

    Raises:
        UsageError: nothing can be produced, or something that is asked for.
    """
    while True:
        text = recipe_text(draft, place.recipe.parent)
        recipe = load_recipe(
            place.recipe,
            text=merged(text, given.settings) if given.settings else text,
            data_root=place.data_root,
            device_folders=place.device_folders,
        )
        impossible = make_plan(recipe).impossible
        if not impossible:
            return draft
        without_float = {each.format for each in impossible if each.variant == BASELINE}
        formats = tuple(name for name in draft.formats if name not in without_float)
        gone = [each for each in impossible if not without_float or each.variant == BASELINE]
        names = {each.variant for each in gone}
        asked = {*given.formats, *([CALIBRATED] if given.int8 else []), *given.variants}
        if not formats or asked & (without_float or names):
            raise UsageError(f"{draft.source}: {_listed(gone)}", fix=gone[0].fix)
        kept = {
            n: options for n, options in (draft.variants or {}).items() if without_float or n not in names
        }
        note = f"left out: {_listed(gone)}: {gone[0].fix}"
        draft = replace(draft, formats=formats, variants=kept, notes=(*draft.notes, note))


def _listed(gone: list[Impossible]) -> str:
    return "; ".join(dict.fromkeys(f"{each.variant} as {each.format}: {each.reason}" for each in gone))
