"""A recipe for each variant of the front, which runs by itself."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edgeopt.plugin import Code, Dataset
from edgeopt.recipe.recipe import Recipe
from edgeopt.recipe.searching import Search
from edgeopt.results.search import Tried


def recipe_text(recipe: Recipe, name: str, tried: Tried, task: Search, folder: Path) -> str:
    """The recipe of a search with only one variant: the one that was found, under its limits as gates.

    Relative paths are those from ``folder``. Code is still found beside the original recipe.
    """
    document: dict[str, Any] = yaml.safe_load(recipe.document)
    document |= {
        "optimize": {"float": {}, name: tried.options},
        "formats": [tried.format],
        "gates": gates_of(task, [name]),
    }
    document["model"] = _relative(document["model"], dict(recipe.model), folder)
    for part in ("calibration", "evaluation", "train", "validation"):
        if (dataset := getattr(recipe, part)) is not None:
            document["data"][part] = _dataset(document["data"][part], dataset, folder)
    figures = ", ".join(f"{key} {value:,.6g}" for key, value in tried.objectives.items())
    lines = [
        f"# Trial {tried.number + 1} of a search: {figures} on {tried.samples} samples for selection.",
        f"# edgeopt optimize {name}.yaml --data-root {recipe.file.parent}",
        "",
    ]
    text: str = yaml.dump(document, Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join(lines) + text


def gates_of(task: Search, variants: Sequence[str]) -> list[dict[str, Any]]:
    """The limits of a search as gates of a recipe for some variants."""
    return [
        gate.model_dump(mode="json", exclude_defaults=True) | {"variants": list(variants)}
        for gate in task.limits
    ]


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _dataset(written: Any, dataset: Dataset, folder: Path) -> Any:
    """A dataset as written, with relative paths from ``folder``."""
    inner: Dataset = getattr(dataset, "inner", dataset)  # of one that is read in another process
    if not isinstance(written, Mapping) or "with" not in written:
        return written
    return {
        **written,
        "with": _relative(written["with"], dict(dataset if dataset is inner else inner), folder),
    }


def _relative(written: Mapping[str, Any], values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Options as written, with those that are paths relative to ``folder``."""
    changed = dict(written)
    for key, value in values.items():
        if key not in changed or isinstance(value, Code):
            continue
        if isinstance(value, Path) and not os.path.isabs(str(changed[key])):
            changed[key] = os.path.relpath(value.resolve(), folder.resolve())
        elif isinstance(value, Dataset):
            changed[key] = _dataset(changed[key], value, folder)
    return changed
