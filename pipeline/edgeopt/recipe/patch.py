"""Patches of recipes: the top-level parts that a proposed change replaces."""

from collections.abc import Mapping
from typing import Any

from edgeopt.config import registry
from edgeopt.evaluation.diagnosis import merged
from edgeopt.evaluation.layer_causes import Changes
from edgeopt.plugin import Stage
from edgeopt.recipe.document import Use


def patch_of(document: Mapping[str, Any], variant: str, changes: Changes) -> dict[str, Any] | None:
    """The changed parts of the recipe, complete; None if the change does not apply to this variant."""
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
    """The variant with changed intents; None if it lists stages and the change does not apply to them."""
    if "stages" in body:
        return _with_options(body, intents)
    existing = {name: {"scheme": value} if isinstance(value, str) else value for name, value in body.items()}
    changed = dict(body)
    for name, value in intents.items():
        old = existing.get(name)
        # New options come first, in front of those of the recipe.
        changed[name] = merged(value, old) if isinstance(value, dict) and isinstance(old, dict) else value
    return {name: _in_order(value) for name, value in changed.items()}


def _in_order(value: Any) -> Any:
    """The options with the scheme first, by convention."""
    if not isinstance(value, dict) or "scheme" not in value:
        return value
    return {"scheme": value["scheme"]} | value


def _with_options(body: Mapping[str, Any], intents: Changes) -> dict[str, Any] | None:
    """A variant that lists its stages: only the options of its quantizing stages can be changed."""
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
    """The patch as shown to the user: only the entries that change."""
    changed: dict[str, Any] = {}
    if "optimize" in patch:
        changed["optimize"] = {variant: patch["optimize"][variant]}
    if "data" in patch:
        changed["data"] = {"calibration": patch["data"]["calibration"]}
    return changed
