"""The results of a run. ``Report`` defines the schema of ``report.json``."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from edgeopt.results.artifact import Artifact
from edgeopt.results.findings import Findings, Reference
from edgeopt.results.gate import Verdict
from edgeopt.results.measurement import Kind, Measurement, Samples, Value, with_kinds
from edgeopt.results.recommendation import MemoryLimits, Recommendation, Target

SCHEMA = 1
GUESSED = "preprocessing guessed"
"""Begins the note of a run whose preprocessing was not stated: every figure depends on it."""
CODE_OF = "code of "
"""Begins what a digest in ``Run.judging_code`` is about, as in "code of metric cost"."""
GUESSES = {"model.preprocess": GUESSED, "model.inputs": "input shape guessed"}
"""Beginnings of the notes on keys of a recipe that were guessed."""

Status = Literal["ok", "failed", "skipped"]
Scalar: TypeAlias = str | float | int | None
Measurements: TypeAlias = Annotated[dict[str, Measurement], BeforeValidator(with_kinds)]


class OutputChange(Value):
    """The deviation of one output from that of the previous step or the source, on the same inputs."""

    name: str = Field(description="name of the output, or its position if the runtime reports no names")
    snr_db: float | None = None
    max_abs_error: float | None = None
    agreement: float | None = Field(
        None, description="of the decisions of a task that reads only this output"
    )
    status: Literal["ok", "broken"] = "ok"
    reason: str = ""


class Hop(Value):
    """The deviation of one step's outputs from those of the previous step, on the same inputs."""

    stage: str = Field(description="the stage, or the device whose runtime ran the artifact")
    produced: str = Field(description="format after the step")
    lossless: bool = Field(description="whether the step is declared to preserve the outputs")
    snr_db: float | None = Field(None, description="of the worst output")
    max_abs_error: float | None = Field(None, description="of all outputs")
    agreement: float | None = Field(None, description="of the decisions with those of the source model")
    status: Literal["ok", "broken", "unmeasured"] = "ok"
    reason: str = ""
    outputs: tuple[OutputChange, ...] = Field((), description="every output, in the source model's order")


class Trial(Value):
    """One candidate of a search for the smallest file of sufficient accuracy.

    Candidates are judged on the data of the search (validation or calibration), never on the evaluation data.
    """

    name: str = Field(description="description, such as 'int8, 2 layers in float'")
    raised: tuple[str, ...] = Field((), description="layers with higher precision than the scheme's")
    size_bytes: int
    drop: float = Field(
        description="accuracy drop against the source model; without labels, the disagreement"
    )
    agreement: float | None = Field(None, description="of the decisions with those of the source model")
    snr_db: float | None = Field(None, description="signal-to-noise ratio of the outputs")
    samples: int = 0
    status: Literal["chosen", "kept", "dominated", "alone"] = Field(
        "kept",
        description="kept: on the Pareto front of accuracy and size; dominated: another is better in both; "
        "alone: a single layer in higher precision, to measure its share of the error",
    )


class Flip(Value):
    """A sample that is correct in the source model and wrong in the artifact."""

    sample: int = Field(description="index in the evaluation data")
    label: int
    answer: int = Field(description="class predicted by the artifact")
    margin: float = Field(description="score of the predicted class minus score of the correct class")


class ClassChange(Value):
    """Correct answers for the evaluation samples of one class."""

    label: int
    n: int = Field(description="number of samples of the class")
    before: int = Field(description="correct answers of the source model")
    after: int = Field(description="correct answers of the artifact")


class Confusion(Value):
    """The number of evaluation samples of one class predicted as another."""

    label: int
    answer: int = Field(description="predicted class")
    before: int = Field(description="by the source model")
    after: int = Field(description="by the artifact")


class Result(Value):
    """One variant in one format on one device. Results that could not run are included, with the reason."""

    variant: str
    format: str
    device: str
    status: Status
    reason: str = ""
    artifact: Artifact | None = None
    measurements: Measurements = Field({})
    outputs: dict[str, Measurements] = Field(
        {}, description="metrics against the source model by output, if there are several; the worst counts"
    )
    output_changes: tuple[OutputChange, ...] = Field(
        (), description="every output, compared with that of the source model; the reason lists dead parts"
    )
    hops: tuple[Hop, ...] = ()
    chain: tuple[str, ...] = Field((), description="stages that built the artifact, in order")
    transposes: int | None = Field(None, description="TRANSPOSE operators in the artifact")
    runtime: str = ""
    layers: tuple[dict[str, Scalar], ...] = Field(
        (), description="one row per operator, if the runtime or compiler reports them"
    )
    notes: tuple[str, ...] = ()
    samples: dict[str, Samples] = Field(
        {},
        description="per metric, a value for every evaluation sample, or its contribution; higher is better",
    )
    flips: tuple[Flip, ...] = Field(
        (), description="samples correct in the source model and wrong here, by margin"
    )
    classes: tuple[ClassChange, ...] = Field((), description="correct answers per class, largest loss first")
    confusions: tuple[Confusion, ...] = Field(
        (), description="confusions between classes, largest change first"
    )
    findings: tuple[Findings, ...] = Field((), description="of every task: what became of its decisions")
    trials: tuple[Trial, ...] = Field((), description="candidates of the search that led to this artifact")
    cached: bool = Field(False, description="taken from an earlier measurement on this machine")


class Run(Value):
    """The circumstances of a run: time, command, versions and digests of its inputs."""

    started: str
    seconds: float
    command: str
    edgeopt: str
    recipe_digest: str = ""
    calibration_digest: str = ""
    evaluation_digest: str = ""
    train_digest: str = ""
    validation_digest: str = ""
    document: str = Field("", description="the recipe as run, in YAML")
    judging_code: dict[str, str] = Field(
        {}, description="digests of your own code that judges: metrics, tasks and the decoder"
    )
    samples: int = 0
    notes: tuple[str, ...] = ()


class SourceResult(Value):
    """Measurements of the original model, the baseline of every drop."""

    format: str
    path: str
    is_folder: bool = Field(False, description="whether the digest covers the names and contents of a folder")
    digest: str = ""
    size_bytes: int = 0
    status: Status = "ok"
    reason: str = ""
    runtime: str = ""
    measurements: Measurements = Field({})


class MetricInfo(Value):
    """A metric of the recipe, and the display of its values."""

    name: str = Field(
        description="key in the measurements: the plugin's name, or the one given in the recipe"
    )
    kind: Kind
    title: str
    unit: str = ""
    better: Literal["higher", "lower"]
    against: Literal["labels", "source"] = Field(description="reference of the outputs")
    status: Status = "ok"
    reason: str = Field("", description="reason why it could not be computed")


class Report(Value):
    """All results of a run."""

    schema_version: int = Field(SCHEMA, alias="schema")
    recipe: str
    run: Run
    environment: dict[str, dict[str, Any]] = Field(
        {}, description="per device: the environment found by the agent"
    )
    source: SourceResult | None = None
    metrics: tuple[MetricInfo, ...] = Field((), description="metrics of the recipe, in order")
    results: tuple[Result, ...] = ()
    gates: tuple[Verdict, ...] = ()
    recommended: tuple[Recommendation, ...] = Field((), description="the artifact to ship on each device")
    target: Target | None = Field(
        None, description="the kind of device that the artifacts are for, if none of its kind was measured"
    )
    limits: dict[str, MemoryLimits] = Field(
        {}, description="per device: the memory for a model, as far as its device file limits it"
    )
    labels: tuple[str, ...] = Field((), description="class names, if the recipe has them")
    thumbnails: dict[int, str] = Field(
        {}, description="some of the changed samples, by index, as small PNG images in data: URIs"
    )
    image_size: tuple[int, int] | None = Field(
        None, description="height and width of the samples in pixels, if they are images"
    )
    references: tuple[Reference, ...] = Field(
        (), description="labels and decisions of the source model for the changed samples of the findings"
    )
    folder: Path | None = Field(None, exclude=True, description="folder of the report, once written")

    @property
    def exit_code(self) -> int:
        """3 if something could not run, 1 if a gate failed, otherwise 0.

        3 takes precedence: gates fail as a consequence of results that could not run.
        """
        statuses = [*(row.status for row in self.results), *(metric.status for metric in self.metrics)]
        statuses += [self.source.status] if self.source is not None else []
        if any(status != "ok" for status in statuses):
            return 3
        return 1 if any(verdict.blocks for verdict in self.gates) else 0

    @property
    def primary_metric(self) -> str:
        """The first measured metric of the recipe, shown first in tables; '' if there is none."""
        rows = [row.measurements for row in self.results]
        rows += [self.source.measurements] if self.source is not None else []
        names = [metric.name for metric in self.metrics if metric.against == "labels"]
        # Reports of a single file, and those of earlier versions, do not list metrics.
        names += [name for row in rows for name, value in row.items() if value.role == "quality"]
        return next((name for name in names if any(name in row for row in rows)), "")

    def of_device(self, device: str) -> "Report":
        """The report, reduced to one device."""
        results = tuple(result for result in self.results if result.device == device)
        changed = {
            (found.head, change.sample)
            for result in results
            for found in result.findings
            for change in found.samples
        }
        shown = {sample for _, sample in changed}
        shown |= {flip.sample for result in results for flip in result.flips}
        return self.model_copy(
            update={
                "results": results,
                "thumbnails": {index: image for index, image in self.thumbnails.items() if index in shown},
                "references": tuple(one for one in self.references if (one.head, one.sample) in changed),
                "gates": tuple(verdict for verdict in self.gates if verdict.device in (device, "-")),
                "recommended": tuple(one for one in self.recommended if one.device == device),
                "limits": {name: each for name, each in self.limits.items() if name == device},
                "environment": {name: probe for name, probe in self.environment.items() if name == device},
            }
        )

    def _repr_html_(self) -> str:
        """What a notebook shows. Renderers are a layer above: this one is looked up when it is needed."""
        html: str = import_module("edgeopt.reports.notebook").render(self)
        return html

    def is_stand_in(self, device: str) -> bool:
        """Whether a device was measured in place of another kind, which the artifacts are for."""
        return self.target is not None and self.target.stand_in == device

    def place(self, device: str) -> str:
        """Where the artifact goes that is recommended on a device, in words."""
        if self.target is None or self.target.stand_in != device:
            return device
        return f"{self.target.title} (tested on {device})"

    def devices(self) -> list[str]:
        """Names of the devices, in the order of the recipe."""
        return list(dict.fromkeys(result.device for result in self.results))


SPARSE = 0.3
"""Fraction of zeros that indicates pruning; below it, zeros may come from rounding small weights."""

ALWAYS = ("fidelity_snr_db", "agreement", "max_abs_error")
"""Metrics that need no labels and are always measured."""


EMULATED = "latency: emulated, not measured"
"""Note on results measured on another processor than the device's."""


class Event(Value):
    """A progress event of one step; without a branch, a message about the whole run."""

    branch: str
    step: str
    status: Literal["planned", "started", "done", "shared", "cached", "failed", "note"]
    """``shared``: run once for another branch with the same step."""
    seconds: float = 0.0
    message: str = ""
