"""From YAML to a recipe. All mistakes are reported at once, with line and column."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.config.yaml_source import Positions, read_yaml, set_value
from edgeopt.devices.device import HOST, Device, load_device, shipped
from edgeopt.errors import Problem, RecipeError, UsageError, shortened
from edgeopt.formats.known import artifact_formats
from edgeopt.formats.source import inspecting
from edgeopt.plugin import Dataset, Decoder, Metric, NamedMetric, Stage, Task, digest_of
from edgeopt.recipe.document import VERSION, DataPart, Document, GatePart, Use
from edgeopt.recipe.gates import report_contradictions, resolved_gate
from edgeopt.recipe.guesses import drop_stated, notes_of
from edgeopt.recipe.heads import assigned, heads_of
from edgeopt.recipe.isolated import Isolated, IsolatedDecoder, Reader, runs_user_code
from edgeopt.recipe.lookup import Lookup
from edgeopt.recipe.recipe import Recipe, Variant
from edgeopt.recipe.searching import Search, refused_objectives, usual_limit
from edgeopt.recipe.selection import EVERYTHING, Selection, declared, narrow_gates
from edgeopt.recipe.starter.goals import GOALS
from edgeopt.recipe.variants import VariantReader
from edgeopt.results import ALWAYS, MEASUREMENTS, Gate, Kind

P = TypeVar("P", Dataset, Decoder, Metric, Stage, Task)
NEVER_NEGATIVE: frozenset[Kind] = frozenset({"fraction", "bytes", "memory", "time", "ratio", "count"})
"""Kinds of measurements below which no limit makes sense."""


def find_recipe(name: str | Path) -> Path:
    """Find a recipe file, or a shipped recipe by its name.

    Raises:
        UsageError: there is neither.
    """
    path = Path(name)
    if os.path.isfile(path):  # unlike Path.is_file, also for a name that is too long
        return path
    folder = shipped("recipes")
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if str(name) in known:
        return folder / f"{name}.yaml"
    hint = nearest(path.stem, known)
    raise UsageError(
        f"no recipe file {shortened(str(name), 200)!r}{hint}",
        fix="write one for your model with: edgeopt init MODEL",
    )


def load_recipe(
    file: str | Path,
    *,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
    beside: Sequence[Path] = (),
    selection: Selection = EVERYTHING,
    text: str | None = None,
) -> Recipe:
    """Read, check and resolve a recipe.

    Relative paths are looked up beside the recipe, then in the folders ``beside``, then in ``data_root``
    (default: ``EDGEOPT_DATA``). ``overrides`` are settings of the form ``key.key=value``, and ``selection``
    is the part to run: gates that judge something else are left out, with a note. ``text`` is the content
    of a recipe that is not yet written to ``file``.

    Raises:
        UsageError: the file does not exist or cannot be read, or an override is invalid.
        RecipeError: all mistakes of the recipe.
    """
    path = Path(file) if text is not None else find_recipe(file)
    data, positions = read_yaml(_read(path) if text is None else text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(str(path), [Problem("a recipe is a mapping of keys to values", 1, 1)])
    before = declared(data)
    for assignment in overrides:
        try:
            set_value(data, assignment, positions)
        except ValueError as error:
            raise UsageError(str(error)) from error
    drop_stated(data, overrides)
    selection.apply(data, positions)
    notes = narrow_gates(data, positions, before)
    if data_root is None and (root := os.environ.get("EDGEOPT_DATA")):
        data_root = Path(root)
    further = [*beside, *([data_root] if data_root else [])]
    roots = (path.resolve().parent, *(folder.resolve() for folder in further))
    recipe = _Resolver(path, data, positions, roots, device_folders).recipe()
    return replace(recipe, notes=(*recipe.notes, *notes))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"cannot read {path}: neither a recipe, which is text in UTF-8, nor a known model",
            fix="give a .yaml file, the name of a shipped recipe, or a model file",
        ) from error


class _Resolver:
    """Resolves one recipe, and collects all its problems."""

    def __init__(
        self,
        file: Path,
        data: dict[str, Any],
        positions: Positions,
        roots: tuple[Path, ...],
        device_folders: Sequence[Path],
    ) -> None:
        self.file = file
        self.data = data
        self.device_folders = device_folders
        self.problems = Problems(file, positions)
        self.lookup = Lookup(roots, self.problems)
        self.variants = VariantReader(self.lookup, self.problems)
        self.has_unknown_metrics = False
        """Whether a metric could not be resolved; unknown metrics in gates are then not reported."""

    def recipe(self) -> Recipe:
        """The resolved recipe.

        Raises:
            RecipeError: all mistakes of the recipe.
        """
        document = self._document()
        if document.version != VERSION:
            self.problems.add(
                ("version",), f"version {document.version} is unknown; this edgeopt reads {VERSION}"
            )
        model = document.model
        inspection = inspecting(model.path, trust=model.trust, code=model.code) if model.path else None
        devices = [self._device(name, ("devices", i)) for i, name in enumerate(document.devices)]
        if HOST not in document.devices:  # it runs the source model: a bad description must not stop it then
            self._device(HOST, ("devices",))
        heads = heads_of(document, lambda use, loc: self.lookup(Task, use, loc), self.problems)
        decoder = (
            self.lookup(Decoder, document.postprocess, ("postprocess",)) if document.postprocess else None
        )
        metrics = self._metrics(document)
        is_list = isinstance(self.data.get("metric"), list)
        metrics = assigned(document, heads, metrics, self.problems, is_list=is_list)
        variants = tuple(self.variants.variant(name, body or {}) for name, body in document.optimize.items())
        if not any(variant.name == "float" for variant in variants):
            variants = (Variant("float"), *variants)
        for index, name in enumerate(document.formats):
            self._format(name, index)
        variants = tuple(self._searched(variant, document, metrics) for variant in variants)
        gates = [
            self._gate(gate, ("gates", i), document, variants, metrics)
            for i, gate in enumerate(document.gates)
        ]
        report_contradictions(gates, ("gates",), self.problems)
        datasets = {
            part: self.lookup(Dataset, use, ("data", part))
            for part in ("calibration", "evaluation", "train", "validation")
            if (use := getattr(document.data, part)) is not None
        }
        reader = Reader(document.limits.stage_minutes)
        datasets = {
            part: Isolated.of(dataset, reader) if dataset is not None and runs_user_code(dataset) else dataset
            for part, dataset in datasets.items()
        }
        if decoder is not None and runs_user_code(decoder):
            decoder = IsolatedDecoder.of(decoder, reader)
        if "evaluation" not in datasets and document.metric:
            self.problems.add(("metric",), "accuracy needs data.evaluation: add it, or remove metric")
        if self.problems:
            raise self.problems.error()
        return Recipe(
            file=self.file,
            name=document.name,
            digest=digest_of(self.data),
            model=document.model,
            calibration=datasets.get("calibration"),
            evaluation=datasets.get("evaluation"),
            train=datasets.get("train"),
            validation=datasets.get("validation"),
            allow_leak=document.data.allow_leak,
            heads=heads,
            decoder=decoder,
            metrics=tuple(metrics),
            variants=variants,
            formats=tuple(dict.fromkeys(document.formats)),
            devices=tuple(device for device in devices if device is not None),
            gates=tuple(gates),
            limits=document.limits,
            latency=document.latency,
            ship=document.ship,
            target=GOALS[document.target].target if document.target else None,
            notes=notes_of(document.guessed),
            document=yaml.safe_dump(self.data, sort_keys=False, allow_unicode=True),
            positions=self.problems.positions,
            inspection=inspection,
        )

    def _document(self) -> Document:
        try:
            return Document.model_validate(self.data, context={"roots": self.lookup.roots})
        except ValidationError as error:
            self.problems.refused(error, (), Document)
        # The document is invalid, but its names are still looked up, to report all mistakes at once.
        data = self.data.get("data")
        for part, value in data.items() if isinstance(data, dict) else ():
            if part in DataPart.model_fields and part != "allow_leak":
                with contextlib.suppress(ValidationError):  # already reported with the document
                    self.lookup(Dataset, Use.model_validate(value), ("data", part))
        metric, is_list = self.data.get("metric"), isinstance(self.data.get("metric"), list)
        for index, value in enumerate(_as_items(metric)):
            with contextlib.suppress(ValidationError):
                self.lookup(Metric, Use.model_validate(value), ("metric", index) if is_list else ("metric",))
        for index, name in enumerate(_as_items(self.data.get("formats"))):
            self._format(name, index)
        for index, name in enumerate(_as_items(self.data.get("devices"))):
            if isinstance(name, str):
                self._device(name, ("devices", index))
        variants = self.data.get("optimize")
        for name, body in variants.items() if isinstance(variants, dict) else ():
            if body is None or isinstance(body, dict):
                self.variants.variant(name, body or {})
        raise self.problems.error()

    def _format(self, name: object, index: int) -> None:
        if isinstance(name, str) and name not in artifact_formats():
            self.problems.add(("formats", index), f"no format {name!r}{nearest(name, artifact_formats())}")

    def _metrics(self, document: Document) -> list[NamedMetric]:
        """The metrics of the recipe by name, and those that are always measured."""
        is_list = isinstance(self.data.get("metric"), list)
        metrics: dict[str, NamedMetric] = {}
        for index, use in enumerate(document.metric):
            loc: Loc = ("metric", index) if is_list else ("metric",)
            metric = self.lookup(Metric, use, loc)
            name = use.name or (registry.plugin_name(metric) if metric is not None else use.uses)
            if name in metrics:
                self.problems.add(
                    loc, f"{name!r} is used twice: give this one a name, {{uses: {use.uses}, name: ...}}"
                )
            if name in MEASUREMENTS:
                self.problems.add(loc, f"{name!r} is the name of a measurement: give the metric another name")
            if metric is not None:
                metrics[name] = NamedMetric(name, metric)
            else:
                self.has_unknown_metrics = True
        always = [NamedMetric(name, registry.find(Metric, name)()) for name in ALWAYS if name not in metrics]
        return [*metrics.values(), *always]

    def _searched(self, variant: Variant, document: Document, metrics: Sequence[NamedMetric]) -> Variant:
        """A variant with the limits of its search, if it has one."""
        if variant.search is None:
            return variant
        part, loc = variant.search.part, ("optimize", variant.name, "search")
        for index, reason in refused_objectives(part, [metric.name for metric in metrics]).items():
            self.problems.add((*loc, "minimize", index), reason)
        limits = tuple(
            self._gate(gate, (*loc, "under", index), document, (variant,), metrics)
            for index, gate in enumerate(part.under or [usual_limit(metrics)])
        )
        report_contradictions(limits, (*loc, "under"), self.problems)
        return variant._replace(search=Search(limits, part))

    def _gate(
        self,
        gate: GatePart,
        loc: Loc,
        document: Document,
        variants: Sequence[Variant],
        metrics: Sequence[NamedMetric],
    ) -> Gate:
        complete = not self.has_unknown_metrics
        return resolved_gate(gate, loc, document, variants, metrics, self.problems, complete=complete)

    def _device(self, name: str, loc: Loc) -> Device | None:
        try:
            return load_device(name, self.device_folders, beside=self.file.resolve().parent / "devices")
        except UsageError as error:
            self.problems.add(loc, str(error))
            return None


def _as_items(value: object) -> list[Any]:
    """The entries of a value that may be one entry or a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
