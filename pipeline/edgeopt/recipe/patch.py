"""Changes of a recipe as the parts of it that are then another."""

from collections.abc import Mapping
from typing import Any

from edgeopt.config import registry
from edgeopt.evaluation.diagnosis import Changes, merged
from edgeopt.plugin import Stage
from edgeopt.recipe.document import Use


def patch_of(document: Mapping[str, Any], variant: str, changes: Changes) -> dict[str, Any] | None:
    """The parts of the recipe that change, as a whole; None where this variant cannot take the change."""
    if not changes:
        return None
    patch: dict[str, Any] = {}
    intents = {name: value for name, value in changes.items() if name != "data"}
    if intents:
        optimize = dict(document["optimize"])
        body = _with_intents(optimize[variant] or {}, intents)
        if body is None:
            return None
        patch["optimize"] = optimize | {variant: body}
    if "data" in changes:
        patch["data"] = dict(document["data"]) | dict(changes["data"])
    return patch


def _with_intents(body: Mapping[str, Any], intents: Changes) -> dict[str, Any] | None:
    if "stages" in body:
        return _with_options(body, intents)
    told = {name: {"scheme": value} if isinstance(value, str) else value for name, value in body.items()}
    changed = dict(body)
    for name, value in intents.items():
        mine = told.get(name)
        # What is asked for anew stands before what was there.
        changed[name] = merged(value, mine) if isinstance(value, dict) and isinstance(mine, dict) else value
    return {name: _in_order(value) for name, value in changed.items()}


def _in_order(value: Any) -> Any:
    """The scheme first, as people write it."""
    if not isinstance(value, dict) or "scheme" not in value:
        return value
    return {"scheme": value["scheme"]} | value


def _with_options(body: Mapping[str, Any], intents: Changes) -> dict[str, Any] | None:
    """A variant that lists its stages: the one that quantizes takes the options; nothing else can be had."""
    if set(intents) != {"quantize"}:
        return None
    stages = []
    for entry in body["stages"]:
        use = Use.model_validate(entry)
        kind = registry.plugins(Stage).get(use.uses)
        if kind is not None and "quantize" in kind.fulfils:
            entry = {"uses": use.uses, "with": merged(intents["quantize"], use.options)}
        stages.append(entry)
    return {"stages": stages}


def shown(patch: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Of the parts that change, what changes in them."""
    changed: dict[str, Any] = {}
    if "optimize" in patch:
        changed["optimize"] = {variant: patch["optimize"][variant]}
    if "data" in patch:
        changed["data"] = {"calibration": patch["data"]["calibration"]}
    return changed
