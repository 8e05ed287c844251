"""Reproduction of a published artifact: rebuild it from its provenance and compare the two."""

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
from edgeopt.recipe.plan import Branch, Plan
from edgeopt.recipe.planner import make_plan
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
    """The result of a rebuild. ``recorded`` and ``rebuilt`` are the sha256 of both files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["same", "same graph and tensors", "different"]
    name: str
    version: str
    variant: str
    format: str
    device: str
    recorded: str
    rebuilt: str
    differences: tuple[str, ...] = Field((), description="differences from the record")
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 if the graph or its tensors differ, otherwise 0."""
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
    """Rebuild the artifact of a bundle and compare the two files.

    The recorded model and data must be available; evaluation data is not needed. The output of a device's
    compiler is not rebuilt: for such bundles, the input of the compiler is compared.

    Args:
        bundle: folder of an unpacked bundle; it is not changed.
        store: folder of cached results to use; default: an empty temporary store.
        data_root: last folder in which relative paths of the recipe are looked up; default ``EDGEOPT_DATA``.
        beside: folders searched before it; the folder of the shipped recipes is always included.
        trust: allow the recipe to run code of installed packages, and to load files that run code.
        watch: called with every progress event.

    Raises:
        VerificationError: the bundle does not match its provenance.
        UsageError: model or data are missing or not the recorded ones, or the recipe would run code.
        CannotRunError: the artifact cannot be built here.
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
            raise StageError(f"{branch.name} cannot be rebuilt: {built.failure}")
        return _compared(record, model, built.steps[-1].model.path, _changes(record, branch))


def _recorded_model(bundle: Path, record: Statement) -> Path:
    """The bundle's model, after comparing all its files and the recipe with the provenance."""
    recorded = {subject.name: subject.only_digest() for subject in record.subject}
    # The main file, or the folder of the model, is at the top level of the bundle.
    main = check_path(record.subject[0].name)
    model = bundle / main.parts[0]
    files = [bundle / main, *([bundle / RECIPE] if RECIPE in recorded else [])]
    if model.exists():
        files += format_named(record.parameters.format).files(model)
    for path in files:
        name = path.relative_to(bundle).as_posix()
        if not path.is_file() or path.is_symlink() or file_digest(path) != recorded.get(name):
            raise VerificationError(
                f"{path} does not match its digest in {FILE}", fix="pull the bundle again"
            )
    return model


def _planned(
    record: Statement, file: Path, folders: Sequence[Path], data_root: Path | None, trust: bool
) -> tuple[Plan, Branch]:
    """The plan of the recorded recipe, reduced to the recorded artifact."""
    request = record.parameters
    document, _ = read_yaml(request.recipe.text, "the recorded recipe")
    if not isinstance(document, dict) or request.variant not in {"float", *(document.get("optimize") or {})}:
        raise VerificationError(f"the recorded recipe has no variant {request.variant!r}")
    if not trust:
        _refuse_foreign_code(document, folders)
    data = document.get("data") or {}
    needed = _needed(record.predicate.build_definition.internal_parameters.chain)
    variants = document.get("optimize") or {}
    reduced = {key: value for key, value in document.items() if key not in ("metric", "gates", "devices")} | {
        "data": {part: use for part, use in data.items() if part in needed},
        "optimize": {request.variant: variants.get(request.variant) or {}},
        "formats": [request.format],
        "devices": ["host"],
    }
    file.write_text(yaml.safe_dump(reduced, sort_keys=False, allow_unicode=True), "utf-8")
    try:
        plan = make_plan(load_recipe(file, data_root=data_root, beside=folders))
    except RecipeError as error:
        problems = "\n  ".join(f"{p.path + ': ' if p.path else ''}{p.message}" for p in error.problems)
        raise UsageError(
            f"the recorded recipe cannot be run here:\n  {problems}",
            fix="give the folder of model and data with --beside DIR or --data-root DIR",
        ) from error
    for missing in plan.impossible:
        if missing.variant == request.variant:
            raise CannotRunError(
                f"{request.variant}.{request.format} cannot be built here: {missing.reason}", fix=missing.fix
            )
    return plan, next(branch for branch in plan.branches if branch.variant == request.variant)


def _refuse_foreign_code(document: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Refuse a recipe that would run code of the bundle's author; a model and data alone run none.

    Code in the given folders belongs to the user and is allowed.

    Raises:
        UsageError: the recipe trusts files that may run code, or refers to code outside ``folders``.
    """
    fix = "read the bundle's recipe.yaml; if you trust its author, allow it with --trust"
    model = document.get("model")
    model = model if isinstance(model, Mapping) else {}
    if model.get("trust"):
        raise UsageError("the recorded recipe loads files that may run code (trust: true)", fix=fix)
    # Class names are free text, which may look like a reference to code.
    unlabelled = {key: part for key, part in model.items() if key != "labels"}
    for text in _code_references({**document, "model": unlabelled}):
        path = Path(*text.partition(":")[0].split("."))
        modules = (folder / path for folder in folders)
        if not any(m.with_suffix(".py").is_file() or (m / "__init__.py").is_file() for m in modules):
            raise UsageError(f"the recorded recipe runs code from outside the given folders: {text}", fix=fix)


def _code_references(value: object) -> Iterator[str]:
    """All texts of the form of a code reference, ``module:name``."""
    if isinstance(value, str) and _CODE.fullmatch(value):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _code_references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _code_references(part)


def _needed(chain: Sequence[str]) -> set[str]:
    """The datasets that these stages may read; others need not be available."""
    try:
        stages = [registry.find(Stage, name) for name in chain if ":" not in name]
    except UsageError:
        stages = []  # stages of another version: reported later, as a difference from the record
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
    """Compare the digests of model and data with the record.

    Raises:
        UsageError: one of them differs.
    """
    present = {"source": (str(plan.source.path), model_digest(plan.source))}
    for part, dataset in datasets_of(plan.recipe).items():
        present[part] = (f"data.{part}", dataset.digest())
    for name, (where, digest) in present.items():
        recorded = record.ingredients.get(name, digest)
        if recorded != digest:
            what = "the model" if name == "source" else "the data"
            raise UsageError(
                f"{where} is not {what} that {branch.name} was built from: its digest is {digest}, "
                f"recorded is {recorded}",
                fix="give the folder with the recorded one first: --beside DIR",
            )


def _changes(record: Statement, branch: Branch) -> list[str]:
    """Stages and package versions that differ from the record."""
    internal = record.predicate.build_definition.internal_parameters
    chain = tuple(registry.plugin_name(stage) for stage in branch.stages)
    changes = (
        []
        if chain == internal.chain
        else [f"stages: {', '.join(chain)}; recorded: {', '.join(internal.chain)}"]
    )
    installed = {name: version for stage in branch.stages for name, version in stage.versions().items()}
    installed["edgeopt"] = importlib.metadata.version("edgeopt")
    recorded = record.packages | record.predicate.run_details.builder.version
    return changes + [
        f"{name} {installed.get(name, 'not used')}; recorded: {recorded[name]}"
        for name in sorted(recorded)
        if installed.get(name) != recorded[name]
    ]


def _compared(record: Statement, model: Path, rebuilt: Path, changes: Sequence[str]) -> Reproduction:
    request = record.parameters
    kind = format_named(request.format)
    digest = kind.digest(rebuilt)
    # If a device's compiler replaced the built file, the bundle contains its output instead.
    compiled = record.built != kind.digest(model)
    notes = [f"the output of the compiler of {request.device} was not rebuilt"] if compiled else []
    verdict: Literal["same", "same graph and tensors", "different"] = SAME
    if digest != record.built:
        verdict = DIFFERENT
        if compiled:
            changes = [*changes, f"the bundle contains only the output of the compiler of {request.device}"]
        elif kind.semantic_digest(rebuilt) == kind.semantic_digest(model):
            verdict = EQUIVALENT
        else:
            first = kind.first_difference(model, rebuilt)
            changes = [f"first difference: {first}", *changes] if first else changes
    return Reproduction(
        verdict=verdict,
        **{key: getattr(request, key) for key in ("name", "version", "variant", "format", "device")},
        recorded=record.built,
        rebuilt=digest,
        differences=tuple(changes),
        notes=tuple(notes),
    )
