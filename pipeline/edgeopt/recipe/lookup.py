"""Looks up the plugins that a recipe names."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from edgeopt.config import registry
from edgeopt.config.problems import Problems
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.errors import UsageError
from edgeopt.plugin import Dataset, Decoder, Metric, Stage, Task
from edgeopt.recipe.document import Use

P = TypeVar("P", Dataset, Decoder, Metric, Stage, Task)


class Lookup:
    """Finds plugins by name, and reports unknown names and refused options."""

    def __init__(self, roots: tuple[Path, ...], problems: Problems) -> None:
        """``roots``: the folders for relative paths, of files with plugins and in options."""
        self.roots = roots
        self.problems = problems

    def __call__(self, base: type[P], use: Use, loc: Loc) -> P | None:
        """The plugin that the value at ``loc`` names, with its options; None if there is a problem."""
        try:
            plugin = registry.find(base, use.uses, self.roots)
        except UsageError as error:
            where = (*loc, "uses") if (*loc, "uses") in self.problems.positions else loc
            self.problems.add(where, error.message)
            return None
        try:
            return plugin.model_validate(use.options, context={"roots": self.roots})
        except ValidationError as error:
            self.problems.refused(error, (*loc, "with"), plugin)
            return None
