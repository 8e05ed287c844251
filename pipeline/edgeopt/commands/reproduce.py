"""Builds a published artifact again from the record of its making, and tells whether it is the same."""

import importlib.metadata
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from edgeopt.config import registry
from edgeopt.config.files import file_digest
from edgeopt.config.yaml_source import read_yaml
from edgeopt.devices.device import shipped
from edgeopt.errors import CannotRunError, RecipeError, StageError, UsageError, VerificationError
from edgeopt.formats.known import format_named, model_digest
from edgeopt.plugin import Stage
from edgeopt.publish.trust.provenance import FILE, Statement, read_statement
from edgeopt.publish.unpacking import check_path
from edgeopt.recipe.planner import Branch, Plan, make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Event
from edgeopt.run.build import build
from edgeopt.run.preflight import datasets_of
from edgeopt.run.store import Store

RECIPE: Final = "recipe.yaml"
SAME: Final = "same"
EQUIVALENT: Final = "same graph and tensors"
DIFFERENT: Final = "different"
_CODE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Reproduction(BaseModel):
    """What came of it. ``recorded`` and ``rebuilt`` are the sha256 of both files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["same", "same graph and tensors", "different"]
    name: str
    version: str
    variant: str
    format: str
    device: str
    recorded: str
    rebuilt: str
    differences: tuple[str, ...] = Field((), description="what is not as it was recorded")
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 if it differs in what it computes, otherwise 0."""
        return 1 if self.verdict == DIFFERENT else 0

    def __str__(self) -> str:
        title = f"{self.name}@{self.version}, {self.variant}.{self.format} for {self.device}: {self.verdict}"
        digests = [f"recorded {self.recorded}", f"rebuilt  {self.rebuilt}"]
        return "\n  ".join([title, *digests, *self.differences, *self.notes])


def reproduce(
    bundle: Path,
    *,
    store: Path | None = None,
    data_root: Path | None = None,
    beside: Sequence[Path] = (),
    trust: bool = False,
    watch: Callable[[Event], None] = lambda event: None,
) -> Reproduction:
    """Build the artifact of a bundle again and compare the two files.

    Model and data must lie here and be the recorded ones; evaluation data are not needed. What a device's
    own compiler makes of an artifact is not made again: then what it was given is compared.

    Args:
        bundle: an unpacked bundle; it is not changed.
        store: finished work that may be used; default: an empty one, removed afterwards.
        data_root: where relative paths of the recipe are looked up at last; default ``EDGEOPT_DATA``.
        beside: folders where they are looked up before that. The shipped recipes' folder is one of them.
        trust: allow the recipe to run code of installed packages, and files that run code when loaded.
        watch: called with every piece of progress.

    Raises:
        VerificationError: the bundle is not what its provenance says.
        UsageError: model or data are not the recorded ones, are not here, or the recipe would run code.
        CannotRunError: it cannot be built here.
    """
    record = read_statement(bundle / FILE)
    model = _recorded_model(bundle, record)
    folders = [folder.resolve() for folder in (*beside, shipped("recipes"))]
    with ExitStack() as cleanup:
        scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-")))
        plan, branch = _planned(record, scratch / RECIPE, folders, data_root, trust)
        _check_ingredients(record, plan, branch)
        (built,) = build(replace(plan, branches=(branch,)), Store(store or scratch / "store"), watch)
        if not built.complete:
            raise StageError(f"{branch.name} cannot be built again: {built.failure}")
        return _compared(record, model, built.steps[-1].model.path, _changes(record, branch))


def _recorded_model(bundle: Path, record: Statement) -> Path:
    """The bundle's model, every file of it and the recipe compared with the provenance."""
    recorded = {subject.name: subject.only_digest() for subject in record.subject}
    # The main file lies at the top, and so does the folder of a model that is one.
    main = check_path(record.subject[0].name)
    model = bundle / main.parts[0]
    files = [bundle / main, *([bundle / RECIPE] if RECIPE in recorded else [])]
    if model.exists():
        files += format_named(record.asked.format).files(model)
    for path in files:
        name = path.relative_to(bundle).as_posix()
        if not path.is_file() or path.is_symlink() or file_digest(path) != recorded.get(name):
            raise VerificationError(
                f"{path} is not the file that {FILE} tells of", fix="pull the bundle again"
            )
    return model


def _planned(
    record: Statement, file: Path, folders: Sequence[Path], data_root: Path | None, trust: bool
) -> tuple[Plan, Branch]:
    """The plan of the recorded recipe, reduced to the one artifact."""
    asked = record.asked
    document, _ = read_yaml(asked.recipe.text, "the recorded recipe")
    if not isinstance(document, dict) or asked.variant not in {"float", *(document.get("optimize") or {})}:
        raise VerificationError(f"the recorded recipe has no variant {asked.variant!r}")
    if not trust:
        _demand_harmless(document, folders)
    data = document.get("data") or {}
    needed = _needed(record.predicate.build_definition.internal_parameters.chain)
    variants = document.get("optimize") or {}
    reduced = {key: value for key, value in document.items() if key not in ("metric", "gates", "devices")} | {
        "data": {part: use for part, use in data.items() if part in needed},
        "optimize": {asked.variant: variants.get(asked.variant) or {}},
        "formats": [asked.format],
        "devices": ["host"],
    }
    file.write_text(yaml.safe_dump(reduced, sort_keys=False, allow_unicode=True), "utf-8")
    try:
        plan = make_plan(load_recipe(file, data_root=data_root, beside=folders))
    except RecipeError as error:
        told = "\n  ".join(f"{p.path + ': ' if p.path else ''}{p.message}" for p in error.problems)
        raise UsageError(
            f"the recorded recipe cannot be carried out here:\n  {told}",
            fix="name the folder of model and data with --beside DIR or --data-root DIR",
        ) from error
    for missing in plan.impossible:
        if missing.variant == asked.variant:
            raise CannotRunError(
                f"{asked.variant}.{asked.format} cannot be built here: {missing.reason}", fix=missing.fix
            )
    return plan, next(branch for branch in plan.branches if branch.variant == asked.variant)


def _demand_harmless(document: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Refuse a recipe that could run what its author chose, unlike a model and data.

    Code that lies in the folders given is the user's own.
    """
    fix = "read the bundle's recipe.yaml; if you trust whoever wrote it, allow it with --trust"
    model = document.get("model")
    model = model if isinstance(model, Mapping) else {}
    if model.get("trust"):
        raise UsageError("the recorded recipe loads files that may run code (trust: true)", fix=fix)
    unlabelled = {key: part for key, part in model.items() if key != "labels"}
    for text in _texts({**document, "model": unlabelled}):
        path = Path(*text.partition(":")[0].split("."))
        known = (folder / path for folder in folders)
        if not any(p.with_suffix(".py").is_file() or (p / "__init__.py").is_file() for p in known):
            raise UsageError(
                f"the recorded recipe runs code that is not in the folders given: {text}", fix=fix
            )


def _texts(value: object) -> Iterator[str]:
    """Everything that has the form of a reference to code, ``module:name``."""
    if isinstance(value, str) and _CODE.fullmatch(value):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _needed(chain: Sequence[str]) -> set[str]:
    """The uses of data that stages of these names may look at, so that others need not lie here."""
    try:
        stages = [registry.find(Stage, name) for name in chain if ":" not in name]
    except UsageError:
        stages = []  # of another version: the plan will tell
    if len(stages) < len(chain):
        return {"calibration", "train", "validation"}
    needed: set[str] = set()
    for stage in stages:
        assert issubclass(stage, Stage)
        searches = stage.extra_minutes is not Stage.extra_minutes
        if stage.needs_calibration or stage.needs_training or searches:
            needed.add("calibration")
        if stage.needs_training or searches:
            needed |= {"train", "validation"}
    return needed


def _check_ingredients(record: Statement, plan: Plan, branch: Branch) -> None:
    """Model and data are those that the record names."""
    found = {"source": (str(plan.source.path), model_digest(plan.source))}
    for part, dataset in datasets_of(plan.recipe).items():
        found[part] = (f"data.{part}", dataset.digest())
    for name, (where, digest) in found.items():
        recorded = record.ingredients.get(name, digest)
        if recorded != digest:
            what = "the model" if name == "source" else "data"
            raise UsageError(
                f"{where} is not {what} that {branch.name} was made from: its digest is {digest}, "
                f"recorded is {recorded}",
                fix="name the folder with the recorded one first: --beside DIR",
            )


def _changes(record: Statement, branch: Branch) -> list[str]:
    """What is not as it was recorded: stages, and versions of what builds."""
    internal = record.predicate.build_definition.internal_parameters
    chain = tuple(registry.plugin_name(stage) for stage in branch.stages)
    told = (
        []
        if chain == internal.chain
        else [f"stages: {', '.join(chain)}; recorded: {', '.join(internal.chain)}"]
    )
    installed = {name: found for stage in branch.stages for name, found in stage.versions().items()}
    installed["edgeopt"] = importlib.metadata.version("edgeopt")
    recorded = record.packages | record.predicate.run_details.builder.version
    return told + [
        f"{name} {installed.get(name, 'not used')}; recorded: {recorded[name]}"
        for name in sorted(recorded)
        if installed.get(name) != recorded[name]
    ]


def _compared(record: Statement, model: Path, rebuilt: Path, changes: Sequence[str]) -> Reproduction:
    asked = record.asked
    kind = format_named(asked.format)
    digest = kind.digest(rebuilt)
    compiled = record.built != kind.digest(model)
    notes = [f"what the compiler of {asked.device} made of it was not made again"] if compiled else []
    verdict: Literal["same", "same graph and tensors", "different"] = SAME
    if digest != record.built:
        verdict = DIFFERENT
        if compiled:
            changes = [*changes, f"the bundle holds only what the compiler of {asked.device} made of it"]
        elif kind.semantic_digest(rebuilt) == kind.semantic_digest(model):
            verdict = EQUIVALENT
        else:
            first = kind.first_difference(model, rebuilt)
            changes = [f"first difference: {first}", *changes] if first else changes
    return Reproduction(
        verdict=verdict,
        **{key: getattr(asked, key) for key in ("name", "version", "variant", "format", "device")},
        recorded=record.built,
        rebuilt=digest,
        differences=tuple(changes),
        notes=tuple(notes),
    )
