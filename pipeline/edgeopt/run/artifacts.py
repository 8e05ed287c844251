"""Copies finished models into the report's folder, atomically, each with a JSON record."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt.config import registry
from edgeopt.config.files import file_digest, replacing, writing
from edgeopt.formats.known import format_named
from edgeopt.formats.side_car import record_of
from edgeopt.model import InputPreprocessing, Model
from edgeopt.plugin import Code, Format, Plugin
from edgeopt.recipe.plan import Built, Plan
from edgeopt.recipe.recipe import Recipe
from edgeopt.results import Artifact
from edgeopt.run.executors.worker import breakdown
from edgeopt.run.source_names import operator_names, renamed_breakdown, source_names

OTHER_FOLDER = "choose another folder with --out DIR"


def keep_artifact(plan: Plan, built: Built, out: Path) -> Artifact:
    """Copy a finished artifact to ``models/``, with a JSON record of its inputs, outputs and origin."""
    branch, model = built.branch, plan.latest(built)
    kind = format_named(branch.format)
    relative = f"models/{branch.variant}{kind.suffix}"
    target = out / relative
    parts = place(kind, model.path, target)
    digest = kind.digest(target)
    names = source_names(plan, built)
    operators, in_file = operator_names(built, names)
    record = {
        "recipe": plan.recipe.name,
        "variant": branch.variant,
        "format": branch.format,
        "digest": digest,
        "inputs": [spec.model_dump(mode="json") for spec in model.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in model.outputs],
        "preprocessing": _preprocessing(plan.preprocessing, model),
        **_meaning(plan.recipe),
        "labels": plan.recipe.model.labels,
        "chain": list(built.branch.names),
        "versions": {name: version for stage in branch.stages for name, version in stage.versions().items()},
        "layers": list(names.layers),
        "operators": operators,
    }
    replace(record_of(target), lambda s: s.write_text(json.dumps(record, indent=2) + "\n"))
    sizes = built.steps[-1].breakdown if built.steps else breakdown(kind, target, kind.breakdown(target))
    return Artifact(
        path=relative,
        digest=digest,
        size_bytes=kind.size_bytes(target),
        breakdown=renamed_breakdown(sizes, lambda name: in_file.get(name) or names.of(name)),
        parts=tuple(part.relative_to(out).as_posix() for part in parts),
    )


def _meaning(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says about the outputs."""
    meaning: dict[str, Any] = {}
    if recipe.decoder is not None:
        meaning["postprocess"] = _used(recipe.decoder)
    if recipe.heads:
        meaning["tasks"] = [_used(head.task) | {"outputs": head.outputs} for head in recipe.heads]
    return meaning


def _used(plugin: Plugin) -> dict[str, Any]:
    """A plugin as in a recipe, without the folders of this machine."""
    inner = getattr(plugin, "inner", plugin)  # of one that runs in another process
    options = inner.model_dump(mode="json", exclude_defaults=True)
    for name in options:
        value = getattr(inner, name)
        if isinstance(value, Path | Code):
            options[name] = value.name if isinstance(value, Path) else value.target
    return {"uses": registry.plugin_name(inner), "with": options}


def _preprocessing(preprocessing: InputPreprocessing, model: Model) -> Any:
    """The preprocessing of the model's inputs: one for all of them if that is the same, otherwise a list."""
    steps = [preprocessing.of(index, spec) for index, spec in enumerate(model.inputs)]
    # A layout is without effect on an input that is no image.
    images = [each for each, spec in zip(steps, model.inputs, strict=True) if spec.layout] or steps
    common = images[0]
    bare = common.model_copy(update={"layout": None})
    if set(images) == {common} and all(each.model_copy(update={"layout": None}) == bare for each in steps):
        return common.model_dump(mode="json")
    return [each.model_dump(mode="json") for each in steps]


def keep_compiled(built: Built, device: str, compiled: Path, out: Path) -> Artifact:
    """Copy the output of a device's compiler to ``models/``, named after the variant and the device."""
    relative = f"models/{built.branch.variant}.{device}{format_named(built.branch.format).suffix}"
    target = out / relative
    replace(target, lambda scratch: shutil.copyfile(compiled, scratch))
    return Artifact(path=relative, digest=file_digest(target), size_bytes=target.stat().st_size)


def place(kind: Format, path: Path, target: Path) -> list[Path]:
    """Copy a model to ``target``, each file atomically; returns its files there other than ``target``.

    Raises:
        UsageError: the folder is not writable.
        CannotRunError: the disk is full.
    """
    if path.is_dir():
        # Replaced as a whole, so that no file of an earlier run remains.
        replace(target, lambda scratch: kind.copy_to(path, scratch))
        return list(kind.files(target))
    placed = kind.placed(path, target)
    for source, copy in placed.items():
        replace(copy, partial(shutil.copyfile, source))
    return [copy for copy in placed.values() if copy != target]


def replace(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file or folder atomically: ``write`` gets a scratch path next to ``target``.

    Raises:
        UsageError: the folder is not writable.
        CannotRunError: the disk is full.
    """
    with writing(target, OTHER_FOLDER), replacing(target) as scratch:
        write(scratch)
