"""What a user says about a model, and settings that replace those that are found out."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgeopt.config.yaml_source import read_yaml, set_value
from edgeopt.errors import UsageError
from edgeopt.recipe.selection import Selection


@dataclass(frozen=True)
class Given:
    """What a user says about a model."""

    model: Path
    data: Sequence[Path] = ()
    int8: bool = False
    goal: str | None = None
    factory: str | None = None
    shapes: Sequence[Sequence[int]] = ()
    variants: Sequence[str] = ()
    formats: Sequence[str] = ()
    devices: Sequence[str] = ()
    overrides: Sequence[str] = ()
    verb: str = "optimize"
    """The command that was given."""

    @property
    def for_models(self) -> str:
        """An option that is given, and of use for a model only; empty if there is none."""
        options = {
            "--data": self.data,
            "--int8": self.int8,
            "--for": self.goal,
            "--factory": self.factory,
            "--shape": self.shapes,
        }
        return next((option for option, value in options.items() if value), "")

    def demand_none_for_models(self) -> None:
        """Reject options for models beside a recipe.

        Raises:
            UsageError: one is given.
        """
        if option := self.for_models:
            raise UsageError(
                f"{option} is for a model, and {self.model} is a recipe, which says so itself",
                fix="change the recipe, or replace a setting with --set",
            )

    def command(self, *further: str) -> str:
        """The command that says the same, and more."""
        words = ["edgeopt", self.verb, str(self.model)]
        for option, values in (
            ("--data", self.data),
            ("--for", [self.goal] if self.goal else []),
            ("--factory", [self.factory] if self.factory else []),
            ("--shape", [",".join(map(str, shape)) for shape in self.shapes]),
            ("--variant", self.variants),
            ("--format", self.formats),
            ("--device", self.devices),
            ("--set", self.overrides),
        ):
            words += [word for value in values for word in (option, str(value))]
        int8 = ["--int8"] if self.int8 and self.verb == "optimize" else []
        return shlex.join([*words, *int8, *further])

    @property
    def selection(self) -> Selection:
        """The part of a recipe to run."""
        return Selection(tuple(self.variants), tuple(self.formats), tuple(self.devices))

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides as a mapping, with paths relative to the working folder made absolute."""
        settings: dict[str, Any] = {}
        for assignment in self.overrides:
            try:
                set_value(settings, assignment)
            except ValueError as error:
                raise UsageError(str(error)) from error
        absolute: dict[str, Any] = _absolute(settings)
        return absolute


def paths_of(data: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """One path, or several."""
    return (Path(data),) if isinstance(data, str | Path) else tuple(map(Path, data))


def merged(text: str, settings: Mapping[str, Any]) -> str:
    """The text of a recipe with settings that replace its own."""
    document, _ = read_yaml(text, "recipe.yaml")

    def merge(old: Any, new: Any) -> Any:
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return new
        return old | {name: merge(old.get(name), each) for name, each in new.items()}

    head = [line for line in text.splitlines() if line.startswith("#")]
    comments = "\n".join(head[: next((at for at, line in enumerate(head) if "Each entry" in line), 0)])
    whole = yaml.safe_dump(merge(document, dict(settings)), sort_keys=False, allow_unicode=True, width=110)
    return f"{comments}\n{whole}"


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _absolute(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_absolute(each) for each in value]
    exists = isinstance(value, str) and (os.sep in value or "." in value) and os.path.exists(value)
    return os.path.abspath(value) if exists else value
