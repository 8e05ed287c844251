"""The types of a recipe as it is written."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from edgeopt.config.settings import Settings
from edgeopt.config.units import Bytes
from edgeopt.model import Preprocess, Preprocessing, TensorSpec
from edgeopt.plugin import Code, ExistingPath
from edgeopt.recipe.starter.goals import Kind
from edgeopt.results import LIMITS, Preference

if TYPE_CHECKING:
    pass

VERSION = 1
MONTH = 31.0 * 24 * 60
"""In minutes."""
DAY = 24.0 * 60 * 60
"""In seconds."""
PROTOCOLS: dict[str, dict[str, Any]] = {
    "mlperf-tiny": {"min_runs": 10, "min_seconds": 10.0, "max_seconds": 60.0, "repeats": 5}
}
"""MLPerf Tiny, performance mode: five repetitions of at least 10 s and 10 inferences; their median."""


class _Part(Settings):
    model_config = ConfigDict(populate_by_name=True)


class Use(_Part):
    """A plugin by name, with its options: ``name`` or ``{uses: name, with: {...}}``."""

    uses: str = Field(description="name of a plugin, or package.module:Class")
    options: dict[str, Any] = Field({}, alias="with", description="the plugin's options")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"uses": value} if isinstance(value, str) else value


class MetricUse(Use):
    """A metric, with a name if the recipe uses it more than once."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$",
        description="name in reports and gates; default: the plugin's name",
    )
    of: str | None = Field(
        None, description="the task that it scores, as named in 'tasks'; default: the only one that it fits"
    )


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Mapping) else value


def _as_words(value: object) -> object:
    """Accept one entry or a list, and class indices as names."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(str(item) if isinstance(item, int) else item for item in items)


def _usable_inputs(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Check the declared inputs: specs that are read from model files may hold more than edgeopt can feed."""
    names = [spec.name for spec in specs]
    for spec in specs:
        if problem := spec.problem:
            raise ValueError(f"input {spec.name!r}: {problem}")
        if not any(other.shape for other in specs):
            raise ValueError(
                f"input {spec.name!r}: shape [] needs a batch axis, and sizes of at least 1 or null"
            )
        if names.count(spec.name) > 1 or not spec.name:
            raise ValueError(f"input {spec.name!r}: every input needs a name of its own")
    return specs


def _distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        if not label.strip() or labels.count(label) > 1:
            raise ValueError(f"label {label!r}: every class needs a name of its own")
    return labels


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Guess: TypeAlias = Literal["model.preprocess", "model.inputs"]


class ModelPart(_Part):
    """The trained model: a file, or a factory and its weights."""

    path: ExistingPath | None = Field(None, description=".keras, .h5, SavedModel folder, .pt2 or TorchScript")
    factory: Code | None = Field(None, description="module:function that builds the torch.nn.Module")
    arguments: dict[str, Any] = Field({}, description="arguments of the factory")
    weights: ExistingPath | None = Field(None, description="state dict (.pt, .pth, .th) or .safetensors")
    weights_key: str | None = Field(
        None, description="key of the weights in a checkpoint that holds several, such as ema or ema.module"
    )
    inputs: Annotated[tuple[TensorSpec, ...], AfterValidator(_usable_inputs)] = Field(
        (), description="input specs, if the model file does not declare them"
    )
    preprocess: Preprocess = Field(
        Preprocessing(), description="conversion of raw samples to model input: one, or one per input by name"
    )
    labels: Annotated[tuple[str, ...], AfterValidator(_distinct)] = Field(
        (), description="class names, in the order of the outputs"
    )
    trust: bool = Field(False, description="allow a file that runs code, or reads or writes other files")
    code: ExistingPath | None = Field(
        None, description="Python file with the custom layers of a Keras file; requires trust"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelPart":
        if (self.path is None) == (self.factory is None):
            raise ValueError("give either path, or factory (with weights)")
        if self.factory is None and (self.weights is not None or self.arguments):
            raise ValueError("weights and arguments require a factory: add factory: 'module:function'")
        if self.code is not None and not (self.path is not None and self.trust):
            raise ValueError("code is for the custom layers of a file, and requires trust: true")
        if self.weights_key is not None and self.weights is None:
            raise ValueError("weights_key requires weights: a checkpoint that holds several sets of them")
        if self.factory is not None and not self.inputs:
            raise ValueError(
                "a factory does not declare its inputs: add "
                "inputs: [{name: image, shape: [1, 3, 32, 32], layout: NCHW}]"
            )
        return self


class DataPart(_Part):
    """Datasets by purpose. Evaluation data is never used for calibration or training."""

    calibration: Use | None = Field(
        None, description="samples for the quantization ranges; labels are not needed"
    )
    evaluation: Use | None = Field(
        None, description="samples to judge artifacts with, disjoint from the others"
    )
    train: Use | None = Field(None, description="samples for fine-tuning")
    validation: Use | None = Field(
        None, description="samples for searches and early stopping; default: calibration, part of train"
    )
    allow_leak: bool = Field(
        False,
        description="allow evaluation samples that are also used to calibrate or train; the report notes it",
    )


class GatePart(_Part):
    """A condition that decides the exit code."""

    SINGULAR: ClassVar[dict[str, str]] = {
        "variant": "variants",
        "format": "formats",
        "device": "devices",
        "class": "classes",
    }
    """Singular names of the filters, for a single value."""

    metric: str = Field(description="a metric of the recipe, or a measurement such as size_bytes")
    max: float | str | None = Field(
        None, description="largest value; units are accepted: 64 KiB, 12 ms, 0.5 %"
    )
    min: float | str | None = Field(None, description="smallest value")
    max_drop: float | str | None = Field(None, description="largest drop against the source model")
    max_increase: float | str | None = Field(None, description="largest increase over the float variant")
    max_ratio: float | str | None = Field(None, description="largest ratio to the float variant")
    variants: Names = Field((), description="variants to judge; default: all")
    formats: Names = Field((), description="formats to judge; default: all")
    devices: Names = Field((), description="devices to judge on; default: all")
    classes: Annotated[tuple[str, ...], BeforeValidator(_as_words)] = Field(
        (), description="classes whose samples are judged, by name or index; default: all"
    )
    output: str | None = Field(
        None, description="output whose deviation from the source model is judged; default: the worst"
    )
    confidence: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="with max_drop: confidence level required for the verdicts fail and pass",
    )
    undecided: Literal["fail", "pass"] = Field(
        "fail", description="with confidence: verdict when the samples are inconclusive"
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_singular(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        both = [one for one, several in cls.SINGULAR.items() if one in value and several in value]
        if both:
            raise ValueError(f"give {both[0]} or {cls.SINGULAR[both[0]]}, not both")
        return {cls.SINGULAR.get(key, key): entry for key, entry in value.items()}

    @model_validator(mode="after")
    def _one_limit(self) -> "GatePart":
        if sum(getattr(self, kind) is not None for kind in LIMITS) != 1:
            raise ValueError(f"give exactly one of {', '.join(LIMITS)}")
        if self.confidence is not None and self.max_drop is None:
            raise ValueError("confidence requires max_drop")
        if self.classes and (self.max_increase is not None or self.max_ratio is not None):
            raise ValueError("classes require max_drop, min or max of an accuracy metric")
        if self.output is not None and (self.classes or (self.min is None and self.max is None)):
            raise ValueError("output requires min or max of a metric against the source model")
        return self


class Limits(_Part):
    """Resource limits of one stage."""

    stage_minutes: float = Field(20.0, gt=0, le=MONTH, description="timeout of a stage, in minutes")
    training_minutes: float = Field(
        240.0, gt=0, le=MONTH, description="timeout of a stage that trains, in minutes"
    )
    stage_memory: Bytes | None = Field(
        None, ge=1, description="memory limit of a stage; default: 80 % of this machine's memory"
    )


class Latency(_Part):
    """Duration of latency measurements: both minimums must be reached."""

    protocol: Literal["mlperf-tiny"] | None = Field(
        None, description="a standard protocol, which fixes all other settings"
    )
    min_runs: int = Field(50, ge=2, le=1_000_000, description="smallest number of runs")
    min_seconds: float = Field(2.0, ge=0, le=DAY, description="shortest duration, in seconds")
    max_seconds: float = Field(30.0, gt=0, le=DAY, description="longest duration, in seconds")
    repeats: int = Field(
        1, ge=1, le=100, description="repetitions of the whole measurement; latency_median_ms is their median"
    )

    @model_validator(mode="before")
    @classmethod
    def _settings_of_protocol(cls, value: object) -> object:
        protocol = value.get("protocol") if isinstance(value, dict) else None
        if isinstance(value, dict) and isinstance(protocol, str) and protocol in PROTOCOLS:
            fixed = PROTOCOLS[value["protocol"]] | {"protocol": value["protocol"]}
            conflicts = [key for key in value if value[key] != fixed.get(key)]
            if conflicts:
                raise ValueError(f"protocol {value['protocol']} fixes {conflicts[0]}: remove one of the two")
            return fixed
        return value

    @model_validator(mode="after")
    def _shortest_first(self) -> "Latency":
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds {self.min_seconds:g} exceeds max_seconds {self.max_seconds:g}: raise the latter"
            )
        return self


class Document(_Part):
    """A recipe as written."""

    version: int = Field(description="version of the recipe language: 1")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the run and its folder"
    )
    model: ModelPart
    data: DataPart = DataPart()
    task: Use | None = Field(
        None, description="what the outputs mean; default: found by the metric, the labels and the outputs"
    )
    tasks: dict[str, Use] = Field(
        {},
        description="for a model with several tasks: the names of the outputs that a task reads, joined with "
        "+, and the task, such as {logits: classification, boxes+scores: detection}",
    )
    postprocess: Use | None = Field(
        None, description="decoder that computes from raw heads what the task reads, on the host"
    )
    metric: Annotated[tuple[MetricUse, ...], BeforeValidator(_as_list)] = Field(
        (), description="accuracy metrics; fidelity to the source model is always measured"
    )
    optimize: dict[str, dict[str, Any] | None] = Field({}, description="variants by name")
    formats: Names = Field(min_length=1, description="output formats of every variant")
    devices: Names = Field(("host",), description="devices to measure every artifact on")
    target: Kind | None = Field(
        None,
        description="the kind of device that artifacts are for, if none is measured: phone, pi or mcu; the "
        "report then says what the host shows in its place",
    )
    gates: tuple[GatePart, ...] = ()
    ship: Preference = Field(
        "smallest",
        description="the artifact that the report recommends on each device, of those that pass their gates",
    )
    limits: Limits = Limits()
    latency: Latency = Latency()
    guessed: dict[Guess, str] = Field(
        {},
        description="what edgeopt guessed when it wrote the recipe, by key, and how; every report repeats it "
        "until the entry is removed, or --set gives the key",
    )
