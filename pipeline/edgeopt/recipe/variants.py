"""The variants of a recipe: intents, listed stages, or a search."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.config.settings import check_name
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.formats.known import artifact_formats
from edgeopt.plugin import Stage
from edgeopt.recipe.document import Use
from edgeopt.recipe.lookup import Lookup
from edgeopt.recipe.recipe import Intent, Recipe, Variant
from edgeopt.recipe.searching import Search, SearchPart


class VariantReader:
    """Reads the variants of one recipe, and reports their mistakes."""

    def __init__(self, lookup: Lookup, problems: Problems) -> None:
        self.lookup = lookup
        self.problems = problems

    def variant(self, name: str, body: Mapping[str, Any]) -> Variant:
        """A variant; its search, if it has one, is without limits, which refer to metrics."""
        loc: Loc = ("optimize", name)
        try:
            check_name(name)
        except ValueError as error:
            self.problems.add(loc, str(error))
        if name == "float" and body:
            self.problems.add(
                loc, "'float' is the unmodified baseline and takes no options; rename the variant"
            )
        if "search" in body:
            if len(body) > 1:
                self.problems.add(loc, "a variant that is searched has no other keys: fix them with 'over'")
            return Variant(name, search=self._search(body["search"], (*loc, "search")))
        if "stages" in body:
            if len(body) > 1:
                self.problems.add(loc, "a variant has either stages or intents, not both")
            return Variant(name, stages=self._stages(body["stages"], (*loc, "stages")))
        return Variant(name, tuple(self._intents(body, loc)))

    def _search(self, value: object, loc: Loc) -> Search | None:
        """A search, without its limits: they refer to metrics."""
        try:
            return Search((), SearchPart.model_validate(value or {}))
        except ValidationError as error:
            self.problems.refused(error, loc, SearchPart)
            return None

    def _stages(self, value: object, loc: Loc) -> tuple[Stage, ...]:
        if not isinstance(value, list):
            self.problems.add(loc, "stages must be a list of stages")
            return ()
        stages = []
        for index, item in enumerate(value):
            try:
                use = Use.model_validate(item)
            except ValidationError as error:
                self.problems.refused(error, (*loc, index), Use)
                continue
            stage = self.lookup(Stage, use, (*loc, index))
            if stage is not None:
                stages.append(stage)
        return tuple(stages)

    def _intents(self, body: Mapping[str, Any], loc: Loc) -> list[Intent]:
        schemes: dict[str, set[str]] = {}
        by_default: dict[str, Mapping[str, Any]] = {}
        for stage in registry.plugins(Stage).values():
            by_default |= stage.by_default
            for name, known in stage.fulfils.items():
                schemes.setdefault(name, set()).update(known)
        intents = []
        for name, value in body.items():
            base = (*loc, name)
            if name not in schemes:
                self.problems.add(
                    base, f"unknown intent {name!r}{nearest(name, [*schemes, 'stages', 'search'])}"
                )
                continue
            if isinstance(value, bool):
                if name not in by_default and (not value or len(schemes[name]) > 1):
                    known_schemes = ", ".join(sorted(schemes[name]))
                    self.problems.add(base, f"{name} is not a boolean: give a scheme ({known_schemes})")
                elif name not in by_default:
                    intents.append(Intent(name, min(schemes[name]), {}))
                continue
            options = {"scheme": value} if isinstance(value, str) else value
            if not isinstance(options, dict) or not options:
                self.problems.add(
                    base, f"give a scheme ({', '.join(sorted(schemes[name]))}) or a mapping of options"
                )
                continue
            scheme = _scheme(options, schemes[name])
            if scheme not in schemes[name]:
                self.problems.add(
                    base, f"no {name} scheme {scheme!r}{nearest(scheme, sorted(schemes[name]))}"
                )
                continue
            for target in artifact_formats():
                if target in options and not isinstance(options[target], dict):
                    self.problems.add((*base, target), f"give the options of {target} as a mapping")
                    return intents
            known_options = _options_of(name, scheme)
            for place, part in _parts(options, base):
                for key in part:
                    if key not in known_options and not (place == base and key in artifact_formats()):
                        self.problems.add(
                            (*place, key), f"unknown option {key!r}{nearest(key, known_options)}"
                        )
            intents.append(Intent(name, scheme, options))
        for name, chosen in by_default.items():
            if body and body.get(name, True) is True:
                intents.append(Intent(name, min(schemes[name]), dict(chosen), optional=True))
        return intents


def variant_of(recipe: Recipe, name: str, body: Mapping[str, Any]) -> Variant:
    """A further variant for a recipe, from its options as in ``optimize``.

    Raises:
        RecipeError: the options are invalid.
    """
    problems = Problems(recipe.file, {})
    variant = VariantReader(Lookup((), problems), problems).variant(name, body)
    if problems:
        raise problems.error()
    return variant


def _options_of(intent: str, scheme: str) -> list[str]:
    """The options of all stages that fulfil an intent; the planner checks those of the chosen stage."""
    stages = registry.plugins(Stage).values()
    fulfilling = [s for s in stages if scheme in s.fulfils.get(intent, frozenset())]
    return sorted({option for stage in fulfilling for option in stage.model_fields})


def _parts(options: Mapping[str, Any], base: Loc) -> Iterator[tuple[Loc, Mapping[str, Any]]]:
    """The common options of an intent, and those for single formats, with their locations."""
    yield base, options
    for name in artifact_formats():
        if isinstance(options.get(name), dict):
            yield (*base, name), options[name]


def _scheme(options: Mapping[str, Any], known: set[str]) -> str:
    """The scheme of an intent: given explicitly, or by an option of the same name, or the only one."""
    if "scheme" in options:
        return str(options["scheme"])
    implied = [key for key in options if key in known]
    if not implied and len(known) == 1:
        return min(known)
    return str(implied[0] if implied else next(iter(options)))
