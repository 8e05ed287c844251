"""The types in which a run is told: what was measured, what was judged, and the whole report.

``Report`` is the contract behind ``report.json``; its JSON Schema is generated from here.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.run.packing import Samples

SCHEMA = 1

Status = Literal["ok", "failed", "skipped"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Measurement(_Value):
    """One number with its unit; ``n`` samples or runs stand behind it."""

    value: float
    unit: str = ""
    n: int | None = None
    ci95: tuple[float, float] | None = Field(None, description="95 % interval, where one can be given")


class Hop(_Value):
    """How far one step moved the outputs, compared with the step before on the same inputs."""

    stage: str = Field(description="the stage, or the device whose runtime ran the artifact")
    produced: str = Field(description="format after the step")
    lossless: bool = Field(description="whether the step claims to keep the outputs")
    snr_db: float | None = None
    max_abs_error: float | None = None
    agreement: float | None = Field(None, description="share of samples with the same largest output")
    status: Literal["ok", "broken", "unmeasured"] = "ok"
    reason: str = ""


class Trial(_Value):
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


class Flip(_Value):
    """A sample that the source model gets right and the artifact gets wrong."""

    sample: int = Field(description="its index in the evaluation data")
    label: int
    answer: int = Field(description="the class that the artifact takes it for")
    margin: float = Field(description="how far the wrong class's score is above the right one's")


class ClassChange(_Value):
    """How many evaluation samples of one class are classified rightly."""

    label: int
    n: int = Field(description="samples of the class")
    before: int = Field(description="right answers of the source model")
    after: int = Field(description="right answers of the artifact")


class Confusion(_Value):
    """How many evaluation samples of one class are taken for another."""

    label: int
    answer: int = Field(description="the class they are taken for")
    before: int = Field(description="by the source model")
    after: int = Field(description="by the artifact")


class LayerBytes(_Value):
    """The weights of one operator of a file."""

    name: str
    kind: str = Field(description="operator, as the format calls it")
    size_bytes: int
    macs: int | None = Field(None, description="multiply-accumulates of one inference, where they are known")


class Breakdown(_Value):
    """Where the bytes of a file go."""

    parts: dict[str, int] = Field(description="by what they are for; the sum is the size of the file")
    layers: tuple[LayerBytes, ...] = Field(
        (), description="operators with weights, the largest first, where the format tells"
    )


class Artifact(_Value):
    """A finished file. ``path`` is relative to the folder of the report."""

    path: str
    digest: str = Field(description="sha256 of the file")
    size_bytes: int
    breakdown: Breakdown | None = None


class Result(_Value):
    """One variant in one format on one device. Never dropped: what could not run says why."""

    variant: str
    format: str
    device: str
    status: Status
    reason: str = ""
    artifact: Artifact | None = None
    measurements: dict[str, Measurement] = {}
    hops: tuple[Hop, ...] = ()
    chain: tuple[str, ...] = Field((), description="stages that made the artifact, in order")
    transposes: int | None = Field(None, description="TRANSPOSE operators in the artifact")
    runtime: str = ""
    layers: tuple[dict[str, str | float | int | None], ...] = Field(
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


class Gate(_Value):
    """A condition on a measurement; exactly one limit is set. Empty filters mean all."""

    metric: str
    max: float | None = None
    min: float | None = None
    max_drop: float | None = None
    max_increase: float | None = None
    max_ratio: float | None = None
    variants: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    classes: tuple[str, ...] = Field((), description="judge samples of these classes only, by name or number")
    confidence: float | None = Field(
        None, description="fail or pass only where the samples leave no more doubt than this"
    )
    undecided: Literal["fail", "pass"] = Field("fail", description="what too few samples come to")

    @property
    def limit(self) -> tuple[str, float]:
        """The kind of the limit and its value."""
        for kind in LIMITS:
            value = getattr(self, kind)
            if value is not None:
                return kind, value
        raise ValueError("a gate without a limit")  # the recipe loader has refused it

    def __str__(self) -> str:
        kind, value = self.limit
        where = [f"{name}={','.join(names)}" for name, names in self.filters.items() if names]
        where += [f"classes={','.join(self.classes)}"] if self.classes else []
        where += [f"confidence={self.confidence:g}"] if self.confidence is not None else []
        return " ".join([self.metric, kind, f"{value:g}", *where])

    @property
    def filters(self) -> dict[str, tuple[str, ...]]:
        return {"variants": self.variants, "formats": self.formats, "devices": self.devices}

    def concerns(self, result: Result) -> bool:
        """Whether the gate judges this result."""
        return all(
            not names or value in names
            for names, value in (
                (self.variants, result.variant),
                (self.formats, result.format),
                (self.devices, result.device),
            )
        )


LIMITS = ("max", "min", "max_drop", "max_increase", "max_ratio")


class Verdict(_Value):
    """One gate on one result."""

    gate: str
    variant: str
    format: str
    device: str
    status: Literal["pass", "fail", "undecided"]
    measured: float | None = None
    limit: float
    reason: str = ""
    blocks: bool = Field(False, description="whether the exit code is 1 because of it")
    confidence: float | None = Field(None, description="of a gate that asks how sure the drop is")
    bounds: tuple[float, float] | None = Field(
        None, description="the drop lies above the first and below the second, each with that confidence"
    )
    p_value: float | None = Field(None, description="exact McNemar test that there is a drop at all")
    samples_needed: int | None = Field(None, description="that would decide, if they go on as these")


class Run(_Value):
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


class SourceResult(_Value):
    """The untouched model's own measurements: the baseline of every drop."""

    format: str
    path: str
    digest: str = ""
    size_bytes: int = 0
    status: Status = "ok"
    reason: str = ""
    runtime: str = ""
    measurements: dict[str, Measurement] = {}


class Report(_Value):
    """Everything a run found out."""

    schema_version: int = Field(SCHEMA, alias="schema")
    recipe: str
    run: Run
    environment: dict[str, dict[str, Any]] = Field({}, description="per device: what the agent found there")
    source: SourceResult | None = None
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
        broken = any(result.status != "ok" for result in self.results)
        if broken or (self.source is not None and self.source.status != "ok"):
            return 3
        return 1 if any(verdict.blocks for verdict in self.gates) else 0

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


UNITS = {
    "size_bytes": "bytes",
    "gzip_bytes": "bytes",
    "latency_p50_ms": "ms",
    "latency_p90_ms": "ms",
    "latency_p99_ms": "ms",
    "latency_mean_ms": "ms",
    "latency_min_ms": "ms",
    "latency_max_ms": "ms",
    "latency_std_ms": "ms",
    "latency_ratio": "",
    "load_ms": "ms",
    "peak_memory_bytes": "bytes",
    "gpu_memory_bytes": "bytes",
    "arena_bytes": "bytes",
    "arena_head_bytes": "bytes",
    "arena_tail_bytes": "bytes",
    "sram_bytes": "bytes",
    "flash_bytes": "bytes",
    "dram_bytes": "bytes",
    "npu_cycles": "",
    "npu_share": "",
    "estimated_latency_ms": "ms",
    "latency_median_ms": "ms",
    "energy_mj": "mJ",
    "parity_max_steps": "steps",
    "parity_max_error": "",
    "parity_flips": "",
    "macs": "",
    "parameters": "",
    "sparsity": "",
}
"""Measurements that every artifact has, beside its accuracy metrics, and their units."""

SPARSE = 0.3
"""Share of zeros from which on weights were made sparse on purpose; small weights round to zero as well."""

ALWAYS = ("fidelity_snr_db", "agreement", "max_abs_error")
"""Metrics that need no labels and are measured whatever the recipe asks for."""


EMULATED = "latency: emulated, not measured"
"""Note of a result that came about on another processor than the device's."""


class Event(_Value):
    """Progress of one piece of work, for whoever watches."""

    branch: str
    step: str
    status: Literal["planned", "started", "done", "shared", "cached", "failed", "note"]
    """``shared``: done for another branch, and of use to this one as well."""
    seconds: float = 0.0
    message: str = ""
