"""From YAML to a recipe. All mistakes are reported at once, with line and column."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from edgeopt.config import registry
from edgeopt.config.nearest import nearest
from edgeopt.config.problems import Problems
from edgeopt.config.settings import check_name
from edgeopt.config.units import quantity
from edgeopt.config.yaml_source import Path as Loc
from edgeopt.config.yaml_source import Positions, read_yaml, set_value
from edgeopt.devices.device import HOST, Device, load_device, shipped
from edgeopt.errors import Problem, RecipeError, UsageError, shortened
from edgeopt.formats.known import artifact_formats
from edgeopt.formats.source import inspecting
from edgeopt.plugin import Dataset, Decoder, Metric, NamedMetric, Stage, Task, digest_of
from edgeopt.recipe.document import (
    VERSION,
    DataPart,
    Document,
    GatePart,
    Intent,
    Recipe,
    Use,
    Variant,
)
from edgeopt.recipe.guesses import drop_stated, notes_of
from edgeopt.recipe.heads import assigned, heads_of
from edgeopt.recipe.isolated import Isolated, IsolatedDecoder, Reader, runs_user_code
from edgeopt.recipe.searching import Search, SearchPart, refused_objectives, usual_limit
from edgeopt.recipe.selection import EVERYTHING, Selection, declared, narrow_gates
from edgeopt.recipe.starter.goals import GOALS
from edgeopt.results import ALWAYS, LIMITS, MEASUREMENTS, Gate, Kind

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


def variant_of(recipe: Recipe, name: str, body: Mapping[str, Any]) -> Variant:
    """A further variant for a recipe, from its options as in ``optimize``.

    Raises:
        RecipeError: the options are invalid.
    """
    resolver = _Resolver(recipe.file, {}, {}, (), ())
    variant = resolver._variant(name, body)
    if resolver.problems:
        raise resolver.problems.error()
    return variant


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
        self.roots = roots
        self.device_folders = device_folders
        self.problems = Problems(file, positions)
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
        heads = heads_of(document, lambda use, loc: self._plugin(Task, use, loc), self.problems)
        decoder = (
            self._plugin(Decoder, document.postprocess, ("postprocess",)) if document.postprocess else None
        )
        metrics = self._metrics(document)
        is_list = isinstance(self.data.get("metric"), list)
        metrics = assigned(document, heads, metrics, self.problems, is_list=is_list)
        variants = tuple(self._variant(name, body or {}) for name, body in document.optimize.items())
        if not any(variant.name == "float" for variant in variants):
            variants = (Variant("float"), *variants)
        for index, name in enumerate(document.formats):
            self._format(name, index)
        variants = tuple(self._searched(variant, document, metrics) for variant in variants)
        gates = [
            self._gate(gate, ("gates", i), document, variants, metrics)
            for i, gate in enumerate(document.gates)
        ]
        self._contradictions(gates, ("gates",))
        datasets = {
            part: self._plugin(Dataset, use, ("data", part))
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
            return Document.model_validate(self.data, context={"roots": self.roots})
        except ValidationError as error:
            self.problems.refused(error, (), Document)
        # The document is invalid, but its names are still looked up, to report all mistakes at once.
        data = self.data.get("data")
        for part, value in data.items() if isinstance(data, dict) else ():
            if part in DataPart.model_fields and part != "allow_leak":
                with contextlib.suppress(ValidationError):  # already reported with the document
                    self._plugin(Dataset, Use.model_validate(value), ("data", part))
        metric, is_list = self.data.get("metric"), isinstance(self.data.get("metric"), list)
        for index, value in enumerate(_as_items(metric)):
            with contextlib.suppress(ValidationError):
                self._plugin(Metric, Use.model_validate(value), ("metric", index) if is_list else ("metric",))
        for index, name in enumerate(_as_items(self.data.get("formats"))):
            self._format(name, index)
        for index, name in enumerate(_as_items(self.data.get("devices"))):
            if isinstance(name, str):
                self._device(name, ("devices", index))
        variants = self.data.get("optimize")
        for name, body in variants.items() if isinstance(variants, dict) else ():
            if body is None or isinstance(body, dict):
                self._variant(name, body or {})
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
            metric = self._plugin(Metric, use, loc)
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

    def _variant(self, name: str, body: Mapping[str, Any]) -> Variant:
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
        self._contradictions(limits, (*loc, "under"))
        return variant._replace(search=Search(limits, part))

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
            stage = self._plugin(Stage, use, (*loc, index))
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
            known_options = self._options_of(name, scheme)
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

    @staticmethod
    def _options_of(intent: str, scheme: str) -> list[str]:
        """The options of all stages that fulfil an intent; the planner checks those of the chosen stage."""
        stages = registry.plugins(Stage).values()
        fulfilling = [s for s in stages if scheme in s.fulfils.get(intent, frozenset())]
        return sorted({option for stage in fulfilling for option in stage.model_fields})

    def _gate(
        self,
        gate: GatePart,
        loc: Loc,
        document: Document,
        variants: tuple[Variant, ...],
        metrics: Sequence[NamedMetric],
    ) -> Gate:
        names = [metric.name for metric in metrics]
        of_set = [name for name, metric, _ in metrics if metric.of_set]
        worst = [f"{name}_worst_class_drop" for name in names if name not in (*ALWAYS, *of_set)]
        known = [*names, *worst, *MEASUREMENTS]
        if gate.metric not in known and not self.has_unknown_metrics:
            self.problems.add((*loc, "metric"), f"no metric {gate.metric!r}{nearest(gate.metric, known)}")
        if gate.metric in of_set and gate.classes:
            self.problems.add(
                (*loc, "classes"),
                f"{gate.metric} is a metric of the whole set, and the samples of one class have no value of "
                "their own: leave classes out, or use a metric with a value for every sample",
            )
        for key, members in (
            ("variants", [variant.name for variant in variants]),
            ("formats", document.formats),
            ("devices", document.devices),
        ):
            for name in getattr(gate, key):
                if name not in members:
                    self.problems.add(
                        (*loc, key),
                        f"no {key[:-1]} {name!r} in this recipe{nearest(name, list(members))}",
                    )
        unit = MEASUREMENTS[gate.metric].unit if gate.metric in MEASUREMENTS else ""
        kinds = {name: shown.kind for name, shown in MEASUREMENTS.items()}
        kinds |= {name: metric.kind for name, metric, _ in metrics}
        limits: dict[str, float] = {}
        for kind in LIMITS:
            value = getattr(gate, kind)
            if value is not None:
                try:
                    limits[kind] = quantity(value, "" if kind == "max_ratio" else unit)
                    _check_limit(kind, limits[kind], kinds.get(gate.metric, "number"))
                except ValueError as error:
                    self.problems.add((*loc, kind), str(error))
        against = {
            metric.name
            for metric in metrics
            if metric.metric.against == "source" and metric.metric.reads == "outputs"
        }
        if gate.output is not None and gate.metric in known and gate.metric not in against:
            self.problems.add(
                (*loc, "output"),
                f"{gate.metric} is not a metric of one output; these are: {', '.join(sorted(against))}",
            )
        labels = document.model.labels
        for name in gate.classes:
            if name not in labels and not (name.isdecimal() and (not labels or int(name) < len(labels))):
                hint = nearest(name, list(labels)) if labels else "; model.labels is empty"
                self.problems.add((*loc, "classes"), f"no class {name!r}{hint}")
        return Gate(**gate.model_dump(exclude=set(LIMITS)), **limits)

    def _contradictions(self, gates: Sequence[Gate], loc: Loc) -> None:
        """Report pairs of gates that no artifact can pass; ``loc`` is the place of their list."""
        for index, gate in enumerate(gates):
            for other in gates[:index]:
                same = (gate.metric, gate.filters, gate.classes, gate.output) == (
                    other.metric,
                    other.filters,
                    other.classes,
                    other.output,
                )
                low = max((g.min for g in (gate, other) if g.min is not None), default=None)
                high = min((g.max for g in (gate, other) if g.max is not None), default=None)
                if same and low is not None and high is not None and low > high:
                    self.problems.add(
                        (*loc, index), f"contradicts the gate '{other}': no artifact can pass both"
                    )

    def _device(self, name: str, loc: Loc) -> Device | None:
        try:
            return load_device(name, self.device_folders, beside=self.file.resolve().parent / "devices")
        except UsageError as error:
            self.problems.add(loc, str(error))
            return None

    def _plugin(self, base: type[P], use: Use, loc: Loc) -> P | None:
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


def _check_limit(limit: str, value: float, kind: Kind) -> None:
    """Reject a limit that every artifact passes, or none.

    Raises:
        ValueError: it is outside the range of the values that it is compared with.
    """
    lowest = 0.0 if limit not in ("max", "min") or kind in NEVER_NEGATIVE else -math.inf
    if value < lowest or (limit == "max_ratio" and value == 0):
        raise ValueError(f"{value:g} is too small: no artifact can pass, or all of them do")
    if kind == "fraction" and limit != "max_ratio" and value > 1:
        raise ValueError(f"{value:g} is more than 100 %: write a fraction such as 0.9, or 90 %")


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


def _as_items(value: object) -> list[Any]:
    """The entries of a value that may be one entry or a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
