"""From YAML to types. Every mistake is found and reported at once, with its line and column."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from edgeopt import registry
from edgeopt.device import Device, load_device, shipped
from edgeopt.errors import Problem, RecipeError, UsageError
from edgeopt.model import SUFFIXES, Preprocessing, TensorSpec
from edgeopt.plugin import Code, Dataset, ExistingPath, Metric, Plugin, Stage, digest_of
from edgeopt.results import ALWAYS, LIMITS, UNITS, Gate
from edgeopt.units import Bytes, quantity
from edgeopt.yamlsource import Path as Loc
from edgeopt.yamlsource import Positions, read_yaml, set_value

VERSION = 1
FORMATS = tuple(SUFFIXES)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Use(_Part):
    """A plugin by name, with its options: ``name`` or ``{uses: name, with: {...}}``."""

    uses: str = Field(description="name of a shipped plugin, or package.module:Class")
    options: dict[str, Any] = Field({}, alias="with", description="the plugin's options")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"uses": value} if isinstance(value, str) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Mapping) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class ModelPart(_Part):
    """The trained model: a file, or a factory and its weights."""

    path: ExistingPath | None = Field(None, description=".keras, .h5, SavedModel folder, .pt2 or TorchScript")
    factory: Code | None = Field(None, description="module:function that builds the torch.nn.Module")
    arguments: dict[str, Any] = Field({}, description="arguments of the factory")
    weights: ExistingPath | None = Field(None, description="state dict (.pt, .pth, .th) or .safetensors")
    inputs: tuple[TensorSpec, ...] = Field((), description="where the model file does not tell")
    preprocess: Preprocessing = Field(Preprocessing(), description="from raw sample to model input")
    labels: tuple[str, ...] = Field((), description="class names, in the order of the outputs")
    trust: bool = Field(False, description="allow Lambda layers and pickles: they run code from the file")

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelPart":
        if (self.path is None) == (self.factory is None):
            raise ValueError("give either path, or factory (with weights)")
        if self.factory is None and (self.weights is not None or self.arguments):
            raise ValueError("weights and arguments belong to a factory: add factory: 'module:function'")
        if self.factory is not None and not self.inputs:
            raise ValueError(
                "a factory does not tell its inputs: add "
                "inputs: [{name: image, shape: [1, 3, 32, 32], layout: NCHW}]"
            )
        return self


class DataPart(_Part):
    """Datasets by their use. Evaluation data is never used for calibration or training."""

    calibration: Use | None = None
    evaluation: Use | None = None
    train: Use | None = None


class GatePart(_Part):
    """A condition that decides the exit code."""

    metric: str
    max: float | str | None = None
    min: float | str | None = None
    max_drop: float | str | None = Field(None, description="largest loss against the source model")
    max_increase: float | str | None = Field(None, description="largest growth against the float variant")
    max_ratio: float | str | None = Field(None, description="largest ratio to the float variant")
    variants: Names = ()
    formats: Names = ()
    devices: Names = ()

    @model_validator(mode="after")
    def _one_limit(self) -> "GatePart":
        if sum(getattr(self, kind) is not None for kind in LIMITS) != 1:
            raise ValueError(f"give exactly one of {', '.join(LIMITS)}")
        return self


class Limits(_Part):
    """What one stage may take before it is stopped."""

    stage_minutes: float = Field(20.0, gt=0)
    stage_memory: Bytes | None = Field(None, description="default: 80 % of the memory of this machine")


class Latency(_Part):
    """How long latency is measured: at least this many runs and this many seconds."""

    min_runs: int = Field(50, ge=2)
    min_seconds: float = Field(2.0, ge=0)
    max_seconds: float = Field(30.0, gt=0)


class Document(_Part):
    """A recipe as it is written."""

    version: int
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: ModelPart
    data: DataPart = DataPart()
    metric: Annotated[tuple[Use, ...], BeforeValidator(_as_list)] = ()
    optimize: dict[str, dict[str, Any] | None] = Field({}, description="each entry is a variant")
    formats: Names = Field(min_length=1)
    devices: Names = ("host",)
    gates: tuple[GatePart, ...] = ()
    limits: Limits = Limits()
    latency: Latency = Latency()


class Intent(NamedTuple):
    """What a variant asks for: ``quantize`` with scheme ``int8`` and options."""

    name: str
    scheme: str
    options: dict[str, Any]


class Variant(NamedTuple):
    """One way to optimize the model; ``stages`` set means that the recipe lists them itself."""

    name: str
    intents: tuple[Intent, ...] = ()
    stages: tuple[Stage, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe whose every name has been found and every option checked."""

    file: Path
    name: str
    digest: str
    model: ModelPart
    calibration: Dataset | None
    evaluation: Dataset | None
    train: Dataset | None
    metrics: tuple[Metric, ...]
    variants: tuple[Variant, ...]
    formats: tuple[str, ...]
    devices: tuple[Device, ...]
    gates: tuple[Gate, ...]
    limits: Limits
    latency: Latency


def find_recipe(name: str | Path) -> Path:
    """A recipe file, or a shipped recipe by its bare name.

    Raises:
        UsageError: when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = shipped("recipes")
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if str(name) in known:
        return folder / f"{name}.yaml"
    hint = registry.nearest(path.stem, known)
    raise UsageError(
        f"no recipe file {str(name)!r}{hint}", fix="write one for your model with: edgeopt init MODEL"
    )


def load_recipe(
    file: str | Path,
    *,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    device_folders: Sequence[Path] = (),
) -> Recipe:
    """Read, check and resolve a recipe.

    ``overrides`` are ``key.key=value`` texts; ``data_root`` (default: ``EDGEOPT_DATA``) is where a
    relative path is looked up when it does not lie beside the recipe.

    Raises:
        UsageError: there is no such file.
        RecipeError: everything wrong with the recipe, in one.
    """
    path = find_recipe(file)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    data, positions = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(str(path), [Problem("a recipe is a mapping of keys to values", 1, 1)])
    for assignment in overrides:
        try:
            set_value(data, assignment)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if data_root is None and (root := os.environ.get("EDGEOPT_DATA")):
        data_root = Path(root)
    roots = (path.resolve().parent, *([data_root.resolve()] if data_root else []))
    return _Resolver(path, data, positions, roots, device_folders).recipe()


T = TypeVar("T", bound=Plugin)


class _Resolver:
    """Collects every problem of one recipe; the recipe comes out only if there is none."""

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
        self.positions = positions
        self.roots = roots
        self.device_folders = (file.resolve().parent / "devices", *device_folders)
        self.problems: list[Problem] = []

    def recipe(self) -> Recipe:
        document = self._document()
        if document is None:
            raise RecipeError(str(self.file), self.problems)
        if document.version != VERSION:
            self._problem(
                ("version",), f"version {document.version} is not known; this edgeopt reads {VERSION}"
            )
        devices = [self._device(name, ("devices", i)) for i, name in enumerate(document.devices)]
        metrics = self._metrics(document)
        variants = tuple(self._variant(name, body or {}) for name, body in document.optimize.items())
        if not any(variant.name == "float" for variant in variants):
            variants = (Variant("float"), *variants)
        for index, name in enumerate(document.formats):
            if name not in FORMATS:
                self._problem(("formats", index), f"no format {name!r}{registry.nearest(name, FORMATS)}")
        gates = [self._gate(gate, i, document, variants, metrics) for i, gate in enumerate(document.gates)]
        datasets = {
            part: self._plugin("datasets", use, ("data", part))
            for part in ("calibration", "evaluation", "train")
            if (use := getattr(document.data, part)) is not None
        }
        if "evaluation" not in datasets and document.metric:
            self._problem(("metric",), "accuracy needs data.evaluation: add it, or remove metric")
        if self.problems:
            raise RecipeError(str(self.file), sorted(self.problems, key=lambda p: (p.line, p.column)))
        return Recipe(
            file=self.file,
            name=document.name,
            digest=digest_of(self.data),
            model=document.model,
            calibration=cast("Dataset | None", datasets.get("calibration")),
            evaluation=cast("Dataset | None", datasets.get("evaluation")),
            train=cast("Dataset | None", datasets.get("train")),
            metrics=tuple(metric for metric in metrics if metric is not None),
            variants=variants,
            formats=tuple(dict.fromkeys(document.formats)),
            devices=tuple(device for device in devices if device is not None),
            gates=tuple(gate for gate in gates if gate is not None),
            limits=document.limits,
            latency=document.latency,
        )

    def _document(self) -> Document | None:
        try:
            return Document.model_validate(self.data, context={"roots": self.roots})
        except ValidationError as error:
            self._validation(error, (), Document)
        # The document cannot be used, but names that can be looked up already are, so that the
        # user hears of everything at once.
        for part, value in self._mapping("data").items():
            if part in DataPart.model_fields:
                self._raw_plugin("datasets", value, ("data", part))
        return None

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self.data.get(key)
        return value if isinstance(value, dict) else {}

    def _raw_plugin(self, kind: registry.Kind, value: object, loc: Loc) -> None:
        try:
            use = Use.model_validate(value)
        except ValidationError:
            return  # told already, as part of the document
        self._plugin(kind, use, loc)

    def _metrics(self, document: Document) -> list[Metric | None]:
        is_list = isinstance(self.data.get("metric"), list)
        asked = [
            cast("Metric | None", self._plugin("metrics", use, ("metric", i) if is_list else ("metric",)))
            for i, use in enumerate(document.metric)
        ]
        names = {registry.plugin_name(metric) for metric in asked if metric is not None}
        always = [cast("Metric", registry.find("metrics", name)()) for name in ALWAYS if name not in names]
        return [*asked, *always]

    def _variant(self, name: str, body: Mapping[str, Any]) -> Variant:
        loc: Loc = ("optimize", name)
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            self._problem(loc, f"variant name {name!r} may hold letters, digits, '-', '_' and '.' only")
        if name == "float" and body:
            self._problem(
                loc, "'float' is the untouched baseline and takes no options; name the variant otherwise"
            )
        if "stages" in body:
            if len(body) > 1:
                self._problem(loc, "a variant lists its stages itself or says what it wants, not both")
            return Variant(name, stages=self._stages(body["stages"], (*loc, "stages")))
        return Variant(name, tuple(self._intents(body, loc)))

    def _stages(self, value: object, loc: Loc) -> tuple[Stage, ...]:
        if not isinstance(value, list):
            self._problem(loc, "stages is a list of stage names")
            return ()
        found = []
        for index, item in enumerate(value):
            try:
                use = Use.model_validate(item)
            except ValidationError as error:
                self._validation(error, (*loc, index), Use)
                continue
            stage = self._plugin("stages", use, (*loc, index))
            if stage is not None:
                found.append(cast(Stage, stage))
        return tuple(found)

    def _intents(self, body: Mapping[str, Any], loc: Loc) -> list[Intent]:
        schemes: dict[str, set[str]] = {}
        for stage in registry.stages().values():
            for name, known in stage.fulfils.items():
                schemes.setdefault(name, set()).update(known)
        intents = []
        for name, value in body.items():
            here = (*loc, name)
            if name not in schemes:
                self._problem(here, f"nothing can {name!r}{registry.nearest(name, [*schemes, 'stages'])}")
                continue
            options = {"scheme": value} if isinstance(value, str) else value
            if not isinstance(options, dict) or not options:
                self._problem(
                    here, f"give a scheme ({', '.join(sorted(schemes[name]))}) or a mapping of options"
                )
                continue
            scheme = str(options.get("scheme", next(iter(options))))
            if scheme not in schemes[name]:
                self._problem(
                    here, f"no {name} scheme {scheme!r}{registry.nearest(scheme, sorted(schemes[name]))}"
                )
                continue
            intents.append(Intent(name, scheme, options))
        return intents

    def _gate(
        self,
        gate: GatePart,
        index: int,
        document: Document,
        variants: tuple[Variant, ...],
        metrics: Sequence[Metric | None],
    ) -> Gate | None:
        loc: Loc = ("gates", index)
        found = {registry.plugin_name(metric): metric for metric in metrics if metric is not None}
        before = len(self.problems)
        known = [*found, *UNITS]
        if gate.metric not in known and None not in metrics:
            self._problem(
                (*loc, "metric"), f"no metric {gate.metric!r}{registry.nearest(gate.metric, known)}"
            )
        for key, names in (
            ("variants", [variant.name for variant in variants]),
            ("formats", document.formats),
            ("devices", document.devices),
        ):
            for name in getattr(gate, key):
                if name not in names:
                    self._problem(
                        (*loc, key),
                        f"no {key[:-1]} {name!r} in this recipe{registry.nearest(name, list(names))}",
                    )
        unit = UNITS.get(gate.metric, "")
        limits: dict[str, float] = {}
        for kind in LIMITS:
            value = getattr(gate, kind)
            if value is not None:
                try:
                    limits[kind] = quantity(value, "" if kind == "max_ratio" else unit)
                except ValueError as error:
                    self._problem((*loc, kind), str(error))
        if len(self.problems) > before:
            return None
        return Gate(
            metric=gate.metric,
            variants=gate.variants,
            formats=gate.formats,
            devices=gate.devices,
            **limits,
        )

    def _device(self, name: str, loc: Loc) -> Device | None:
        try:
            return load_device(name, self.device_folders)
        except UsageError as error:
            self._problem(loc, str(error))
            return None

    def _plugin(self, kind: registry.Kind, use: Use, loc: Loc) -> Plugin | None:
        try:
            found = registry.find(kind, use.uses, self.roots)
        except UsageError as error:
            where = (*loc, "uses") if (*loc, "uses") in self.positions else loc
            self._problem(where, error.message)
            return None
        try:
            return found.model_validate(use.options, context={"roots": self.roots})
        except ValidationError as error:
            self._validation(error, (*loc, "with"), found)
            return None

    def _validation(self, error: ValidationError, base: Loc, model: type[BaseModel]) -> None:
        for item in error.errors(include_url=False):
            loc = (*base, *item["loc"])
            if item["type"] == "extra_forbidden":
                known = _keys_at(model, item["loc"][:-1])
                message = f"unknown key {item['loc'][-1]!r}{registry.nearest(str(item['loc'][-1]), known)}"
            elif item["type"] == "missing":
                message = f"{item['loc'][-1]!r} is missing"
                loc = loc[:-1]
            elif item["type"] == "value_error":
                message = str(item["ctx"]["error"])
            else:
                message = f"{item['msg'][0].lower()}{item['msg'][1:]} (got {_short(item['input'])})"
            self._problem(loc, message)

    def _problem(self, loc: Loc, message: str) -> None:
        known = loc
        while known and known not in self.positions:
            known = known[:-1]
        line, column = self.positions.get(known, (0, 0))
        path = ".".join(str(part) for part in loc if (*known, part) and part in known)
        problem = Problem(message, line, column, path)
        if problem not in self.problems:
            self.problems.append(problem)


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that may stand at ``loc`` below ``model``."""
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            fields = {(field.alias or name): field for name, field in here.model_fields.items()}
            if part not in fields:
                return []
            here = _model_in(fields[str(part)].annotation)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return [field.alias or name for name, field in here.model_fields.items()]
    return []


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside ``X | None``, ``tuple[X, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
