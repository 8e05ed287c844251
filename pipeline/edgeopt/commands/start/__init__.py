"""From a model file to a recipe: by what the file declares, its data shows, and a trial run reveals."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edgeopt.commands.start.declared import of_file
from edgeopt.commands.start.given import Given, merged, paths_of
from edgeopt.commands.start.inputs import with_inputs
from edgeopt.commands.start.targets import possible, with_targets
from edgeopt.commands.start.trial import Place, message, tried
from edgeopt.config.text import as_name
from edgeopt.devices.device import shipped
from edgeopt.formats.known import formats, identify
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.starter.data import parts_of
from edgeopt.recipe.starter.draft import recipe_text
from edgeopt.recipe.starter.goals import goal_of
from edgeopt.results import Event
from edgeopt.run.store import Store

RECIPE = "recipe.yaml"
__all__ = ["RECIPE", "Given", "Place", "Started", "is_model", "paths_of", "recipe_of", "start"]


class Ready(NamedTuple):
    """A recipe to run, the folder of its report, and its text if it was written for a model."""

    recipe: Recipe
    folder: Path
    text: str | None = None


def recipe_of(
    given: Given,
    folder: Callable[[str], Path],
    *,
    store: Callable[[], Store],
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
    watch: Callable[[Event], None] = lambda event: None,
) -> Ready:
    """The recipe that is given, or the one for the model that is given.

    ``folder`` is where the report of a recipe goes, by the recipe's name.

    Raises:
        UsageError: as ``load_recipe`` and ``start``, or options for a model are given with a recipe.
    """
    if not is_model(given.model):
        recipe = load_recipe(  # first: a file that is neither a recipe nor a model is no recipe
            given.model,
            overrides=given.overrides,
            data_root=data_root,
            device_folders=device_folders,
            selection=given.selection,
        )
        given.demand_none_for_models()
        return Ready(recipe, folder(recipe.name))
    place = folder(as_name(given.model.stem))
    started = start(given, Place(place / RECIPE, store(), data_root, device_folders, watch), complete=True)
    for note in started.notes:
        watch(message(note))
    recipe = load_recipe(
        place / RECIPE, text=started.text, data_root=data_root, device_folders=device_folders
    )
    notes = tuple(dict.fromkeys((*started.notes, *recipe.notes)))  # the recipe repeats what was guessed
    return Ready(replace(recipe, notes=notes), place, started.text)


class Started(NamedTuple):
    """A recipe that is not written yet, and how it came about."""

    text: str
    notes: tuple[str, ...]


def is_model(name: str | Path) -> bool:
    """Whether this names a model, and not a recipe: a file or folder, there or missing, of a known kind."""
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml") or os.path.isfile(shipped("recipes") / f"{name}.yaml"):
        return False
    if path.suffix.lower() in {suffix for each in formats().values() for suffix in each.suffixes}:
        return True
    try:
        return os.path.isdir(path) or (os.path.isfile(path) and identify(path) is not None)
    except (OSError, *MALFORMED):
        return False


def start(given: Given, place: Place, *, complete: bool) -> Started:
    """The recipe for a model.

    With ``complete``, it runs as it is; otherwise, what is unknown is marked with ``CHANGE``.

    Raises:
        UsageError: as `edgeopt.formats.source.inspect`; the data is of an unknown kind; or, with
            ``complete``, something cannot be found out: the message says what, and the next command.
    """
    settings = given.settings
    goal = goal_of(given.goal) if given.goal else None
    draft, framework = of_file(given, settings, goal, complete=complete)
    declared = draft.notes
    parts = parts_of(given.data, draft.specs) if given.data else None
    draft = with_inputs(draft, parts, framework, given, complete=complete)
    draft = with_targets(draft, parts, given, goal, place, complete=complete)
    draft = tried(draft, parts, settings, place, complete=complete)
    draft = possible(draft, given, place) if complete else draft
    text = recipe_text(draft, place.recipe.parent)
    notes = tuple(note for note in draft.notes if note not in declared)  # a plan notes what the file says
    return Started(merged(text, settings) if settings else text, notes)
