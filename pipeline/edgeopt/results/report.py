"""Everything that a run found out. ``Report`` is the contract behind ``report.json``."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from edgeopt.results.gate import Verdict
from edgeopt.results.measurement import Kind, Measurement, Samples, Value, with_kinds

SCHEMA = 1

Status = Literal["ok", "failed", "skipped"]
Scalar: TypeAlias = str | float | int | None
Measurements: TypeAlias = Annotated[dict[str, Measurement], BeforeValidator(with_kinds)]


class Hop(Value):
    """How far one step moved the outputs, compared with the step before on the same inputs."""

    stage: str = Field(description="the stage, or the device whose runtime ran the artifact")
    produced: str = Field(description="format after the step")
    lossless: bool = Field(description="whether the step claims to keep the outputs")
    snr_db: float | None = None
    max_abs_error: float | None = None
    agreement: float | None = Field(None, description="share of samples with the same largest output")
    status: Literal["ok", "broken", "unmeasured"] = "ok"
    reason: str = ""


class Trial(Value):
    """One candidate of a search for the smallest file that is accurate enough, as the search saw it.

    Judged on the data that the search may use (validation or calibration), never on the evaluation data.
    """

    name: str = Field(description="what was tried, such as 'int8, 2 layers in float'")
    raised: tuple[str, ...] = Field((), description="layers with more precision than the scheme's")
    size_bytes: int
    drop: float = Field(description="accuracy lost against the source model; without labels, disagreement")
    agreement: float | None = Field(None, description="share of samples with the same largest output")
    snr_db: float | None = Field(None, description="signal to noise of the outputs against the source model")
    samples: int = 0
    status: Literal["chosen", "kept", "dominated", "alone"] = Field(
        "kept",
        description="kept: on the front of accuracy against size; dominated: another is better in both; "
        "alone: one layer raised by itself, to see how much of the error is its",
    )


class Flip(Value):
    """A sample that the source model gets right and the artifact gets wrong."""

    sample: int = Field(description="its index in the evaluation data")
    label: int
    answer: int = Field(description="the class that the artifact takes it for")
    margin: float = Field(description="how far the wrong class's score is above the right one's")


class ClassChange(Value):
    """How many evaluation samples of one class are classified rightly."""

    label: int
    n: int = Field(description="samples of the class")
    before: int = Field(description="right answers of the source model")
    after: int = Field(description="right answers of the artifact")


class Confusion(Value):
    """How many evaluation samples of one class are taken for another."""

    label: int
    answer: int = Field(description="the class they are taken for")
    before: int = Field(description="by the source model")
    after: int = Field(description="by the artifact")


class LayerBytes(Value):
    """The weights of one operator of a file."""

    name: str
    kind: str = Field(description="operator, as the format calls it")
    size_bytes: int
    macs: int | None = Field(None, description="multiply-accumulates of one inference, where they are known")


class Breakdown(Value):
    """Where the bytes of a file go."""

    parts: dict[str, int] = Field(description="by what they are for; the sum is the size of the file")
    layers: tuple[LayerBytes, ...] = Field(
        (), description="operators with weights, the largest first, where the format tells"
    )


class Artifact(Value):
    """A finished model. ``path`` is its main file, or its folder, relative to the folder of the report."""

    path: str
    digest: str = Field(description="sha256 of the file; over all files where there are several")
    size_bytes: int
    breakdown: Breakdown | None = None
    parts: tuple[str, ...] = Field(
        (), description="its further files, where it has several, or all, where it is a folder"
    )


class Result(Value):
    """One variant in one format on one device. Never dropped: what could not run says why."""

    variant: str
    format: str
    device: str
    status: Status
    reason: str = ""
    artifact: Artifact | None = None
    measurements: Measurements = Field({})
    hops: tuple[Hop, ...] = ()
    chain: tuple[str, ...] = Field((), description="stages that made the artifact, in order")
    transposes: int | None = Field(None, description="TRANSPOSE operators in the artifact")
    runtime: str = ""
    layers: tuple[dict[str, Scalar], ...] = Field(
        (), description="one row per operator, where the runtime or the compiler tells"
    )
    notes: tuple[str, ...] = ()
    samples: dict[str, Samples] = Field(
        {}, description="per metric, a value for every evaluation sample, higher is better"
    )
    flips: tuple[Flip, ...] = Field((), description="samples lost, the most certain mistakes first")
    classes: tuple[ClassChange, ...] = Field(
        (), description="right answers per class, the largest loss first"
    )
    confusions: tuple[Confusion, ...] = Field(
        (), description="classes taken for another, the largest change first"
    )
    trials: tuple[Trial, ...] = Field((), description="what a search tried on the way to this artifact")
    cached: bool = Field(False, description="measured by an earlier run on this machine")


class Run(Value):
    """When, how and with what a report was made."""

    started: str
    seconds: float
    command: str
    edgeopt: str
    recipe_digest: str = ""
    calibration_digest: str = ""
    evaluation_digest: str = ""
    train_digest: str = ""
    validation_digest: str = ""
    document: str = Field("", description="the recipe as it was carried out, as YAML")
    samples: int = 0
    notes: tuple[str, ...] = ()


class SourceResult(Value):
    """The untouched model's own measurements: the baseline of every drop."""

    format: str
    path: str
    is_folder: bool = Field(False, description="whether the digest is that of a folder's names and contents")
    digest: str = ""
    size_bytes: int = 0
    status: Status = "ok"
    reason: str = ""
    runtime: str = ""
    measurements: Measurements = Field({})


class MetricInfo(Value):
    """A metric of the recipe, and how its values are shown."""

    name: str = Field(description="as in the measurements: the plugin's, or the one that the recipe gives it")
    kind: Kind
    title: str
    unit: str = ""
    better: Literal["higher", "lower"]
    against: Literal["labels", "source"] = Field(description="what outputs are compared with")
    status: Status = "ok"
    reason: str = Field("", description="why it could not be computed")


class Report(Value):
    """Everything a run found out."""

    schema_version: int = Field(SCHEMA, alias="schema")
    recipe: str
    run: Run
    environment: dict[str, dict[str, Any]] = Field({}, description="per device: what the agent found there")
    source: SourceResult | None = None
    metrics: tuple[MetricInfo, ...] = Field((), description="of the recipe, in its order")
    results: tuple[Result, ...] = ()
    gates: tuple[Verdict, ...] = ()
    labels: tuple[str, ...] = Field((), description="the classes' names, where the recipe gives them")
    thumbnails: dict[int, str] = Field(
        {}, description="some of the samples that flipped, by index, as small PNG pictures in data: URIs"
    )
    folder: Path | None = Field(None, exclude=True, description="where the report lies, once written")

    @property
    def exit_code(self) -> int:
        """3 when something could not run, 1 when a gate failed, otherwise 0.

        A failed gate on something that could not run is a consequence, so 3 comes first.
        """
        statuses = [*(row.status for row in self.results), *(metric.status for metric in self.metrics)]
        statuses += [self.source.status] if self.source is not None else []
        if any(status != "ok" for status in statuses):
            return 3
        return 1 if any(verdict.blocks for verdict in self.gates) else 0

    @property
    def primary_metric(self) -> str:
        """The metric that tables show first: the first of the recipe's that was measured; '' without one."""
        rows = [row.measurements for row in self.results]
        rows += [self.source.measurements] if self.source is not None else []
        judging = [metric.name for metric in self.metrics if metric.against == "labels"]
        # A report of one file on its own, or an old one, does not list its metrics.
        judging += [name for row in rows for name, value in row.items() if value.role == "quality"]
        return next((name for name in judging if any(name in row for row in rows)), "")

    def of_device(self, device: str) -> "Report":
        """The part of a report that is about one device."""
        results = tuple(result for result in self.results if result.device == device)
        flipped = {flip.sample for result in results for flip in result.flips}
        return self.model_copy(
            update={
                "results": results,
                "thumbnails": {at: picture for at, picture in self.thumbnails.items() if at in flipped},
                "gates": tuple(verdict for verdict in self.gates if verdict.device in (device, "-")),
                "environment": {name: found for name, found in self.environment.items() if name == device},
            }
        )

    def devices(self) -> list[str]:
        """Devices in the order of the recipe."""
        return list(dict.fromkeys(result.device for result in self.results))


SPARSE = 0.3
"""Share of zeros from which on weights were made sparse on purpose; small weights round to zero as well."""

ALWAYS = ("fidelity_snr_db", "agreement", "max_abs_error")
"""Metrics that need no labels and are measured whatever the recipe asks for."""


EMULATED = "latency: emulated, not measured"
"""Note of a result that came about on another processor than the device's."""


class Event(Value):
    """Progress of one piece of work, for whoever watches."""

    branch: str
    step: str
    status: Literal["planned", "started", "done", "shared", "cached", "failed", "note"]
    """``shared``: done for another branch, and of use to this one as well."""
    seconds: float = 0.0
    message: str = ""
