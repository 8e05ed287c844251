"""The types of a recipe: the document as it is written, and what it comes to once every name is found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from edgeopt.config.units import Bytes
from edgeopt.devices.device import Device
from edgeopt.formats.known import artifact_formats
from edgeopt.model import Preprocessing, TensorSpec
from edgeopt.plugin import Code, Dataset, ExistingPath, NamedMetric, Stage
from edgeopt.results import LIMITS, Gate

VERSION = 1
PROTOCOLS: dict[str, dict[str, Any]] = {
    "mlperf-tiny": {"min_runs": 10, "min_seconds": 10.0, "max_seconds": 60.0, "repeats": 5}
}
"""MLPerf Tiny's performance mode: at least 10 s and 10 inferences, five times; the median counts."""


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


class MetricUse(Use):
    """A metric, under a name of its own where the recipe uses it more than once."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$",
        description="what reports and gates call it; default: the plugin's name",
    )


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Mapping) else value


def _as_words(value: object) -> object:
    """Class numbers are names as well."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(str(item) if isinstance(item, int) else item for item in items)


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

    calibration: Use | None = Field(
        None, description="finds the ranges of values for quantization; needs no labels"
    )
    evaluation: Use | None = Field(None, description="judges; never the samples of the other two")
    train: Use | None = Field(None, description="for fine-tuning")
    validation: Use | None = Field(
        None, description="what searches and early stopping choose by; default: calibration, part of train"
    )
    allow_leak: bool = Field(
        False, description="judge with samples that were also calibrated or trained with; the report says so"
    )


class GatePart(_Part):
    """A condition that decides the exit code."""

    ALONE: ClassVar[dict[str, str]] = {
        "variant": "variants",
        "format": "formats",
        "device": "devices",
        "class": "classes",
    }
    """How a filter may be called that names one thing only."""

    metric: str = Field(description="a metric of the recipe, or a measurement such as size_bytes")
    max: float | str | None = Field(None, description="largest value, units understood: 64 KiB, 12 ms, 0.5 %")
    min: float | str | None = Field(None, description="smallest value")
    max_drop: float | str | None = Field(None, description="largest loss against the source model")
    max_increase: float | str | None = Field(None, description="largest growth against the float variant")
    max_ratio: float | str | None = Field(None, description="largest ratio to the float variant")
    variants: Names = Field((), description="judge these variants only; default: all")
    formats: Names = Field((), description="judge these formats only; default: all")
    devices: Names = Field((), description="judge on these devices only; default: all")
    classes: Annotated[tuple[str, ...], BeforeValidator(_as_words)] = Field(
        (), description="judge samples of these classes only, by name or number; default: all"
    )
    confidence: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="with max_drop: fail only if the samples leave no more doubt than this, pass likewise",
    )
    undecided: Literal["fail", "pass"] = Field(
        "fail", description="with confidence: what it comes to when there are too few samples to tell"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_is_written_alone(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        twice = [one for one, several in cls.ALONE.items() if one in value and several in value]
        if twice:
            raise ValueError(f"give {twice[0]} or {cls.ALONE[twice[0]]}, not both")
        return {cls.ALONE.get(key, key): entry for key, entry in value.items()}

    @model_validator(mode="after")
    def _one_limit(self) -> "GatePart":
        if sum(getattr(self, kind) is not None for kind in LIMITS) != 1:
            raise ValueError(f"give exactly one of {', '.join(LIMITS)}")
        if self.confidence is not None and self.max_drop is None:
            raise ValueError("confidence is about a drop: it belongs to max_drop")
        if self.classes and (self.max_increase is not None or self.max_ratio is not None):
            raise ValueError("classes belong to max_drop, min or max of an accuracy metric")
        return self


class Limits(_Part):
    """What one stage may take before it is stopped."""

    stage_minutes: float = Field(20.0, gt=0, description="minutes after which a stage is stopped")
    training_minutes: float = Field(240.0, gt=0, description="the same for a stage that trains")
    stage_memory: Bytes | None = Field(None, description="default: 80 % of the memory of this machine")


class Latency(_Part):
    """How long latency is measured: at least this many runs and this many seconds."""

    protocol: Literal["mlperf-tiny"] | None = Field(
        None, description="the settings of a known protocol, instead of one's own"
    )
    min_runs: int = Field(50, ge=2, description="at least so many runs")
    min_seconds: float = Field(2.0, ge=0, description="and at least so long")
    max_seconds: float = Field(30.0, gt=0, description="but no longer")
    repeats: int = Field(1, ge=1, le=100, description="all of it so often; latency_median_ms is their median")

    @model_validator(mode="before")
    @classmethod
    def _settings_of_protocol(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("protocol") in PROTOCOLS:
            fixed = PROTOCOLS[value["protocol"]] | {"protocol": value["protocol"]}
            own = [key for key in value if value[key] != fixed.get(key)]
            if own:
                raise ValueError(f"protocol {value['protocol']} fixes {own[0]}: give one of both")
            return fixed
        return value


class Document(_Part):
    """A recipe as it is written."""

    version: int = Field(description="of the recipe language: 1")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the run and its folder"
    )
    model: ModelPart
    data: DataPart = DataPart()
    metric: Annotated[tuple[MetricUse, ...], BeforeValidator(_as_list)] = Field(
        (), description="one or more metrics of accuracy; fidelity to the source model is always measured"
    )
    optimize: dict[str, dict[str, Any] | None] = Field({}, description="each entry is a variant")
    formats: Names = Field(min_length=1, description="what every variant is converted to")
    devices: Names = Field(("host",), description="where every artifact is measured")
    gates: tuple[GatePart, ...] = ()
    limits: Limits = Limits()
    latency: Latency = Latency()


class Intent(NamedTuple):
    """What a variant asks for: ``quantize`` with scheme ``int8`` and options."""

    name: str
    scheme: str
    options: dict[str, Any]
    optional: bool = False
    """Carried out where the format allows it: nobody asked for it by name."""

    def as_for(self, target: str) -> "Intent":
        """The intent for one format: options under the format's name are for it alone."""
        common = {key: value for key, value in self.options.items() if key not in artifact_formats()}
        return self._replace(options=common | dict(self.options.get(target) or {}))


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
    validation: Dataset | None
    allow_leak: bool
    metrics: tuple[NamedMetric, ...]
    variants: tuple[Variant, ...]
    formats: tuple[str, ...]
    devices: tuple[Device, ...]
    gates: tuple[Gate, ...]
    limits: Limits
    latency: Latency
    document: str = ""
    """YAML text of what is carried out: the file, and what the command line replaced in it."""
