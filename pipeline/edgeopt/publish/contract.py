"""The contract of a bundle: the types behind its ``manifest.json``.

Programs read it: removing a field or changing its meaning requires a new schema number.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeopt.errors import VerificationError
from edgeopt.model import Preprocessing, TensorSpec
from edgeopt.results import Measurements, Verdict

SCHEMA = 1
BY_INPUT = 2
"""The schema of contracts that preprocess inputs differently: readers of schema 1 would treat all alike."""
FILE = "manifest.json"
MICROCONTROLLERS = ("tflm", "vela")
"""Runtimes that run on, or compile for, a microcontroller."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BundleFile(_Value):
    """One file. ``name`` is its path in the bundle, with ``/``."""

    name: str
    sha256: str
    size_bytes: int = Field(ge=0)


class Raw(_Value):
    """One input before preprocessing, as the evaluation data provide it, without a batch axis."""

    shape: tuple[int, ...]
    dtype: str = Field(description="numpy dtype name")


class Used(_Value):
    """A plugin with the options that differ from its defaults; files and code are only named."""

    uses: str
    options: dict[str, Any] = Field({}, alias="with")


class TaskOf(Used):
    """What outputs mean, as the evaluation read them."""

    outputs: tuple[str, ...] = Field((), description="after postprocess; empty: all")


class Arena(_Value):
    """Memory that TensorFlow Lite Micro needs for tensors and bookkeeping, in bytes."""

    measured_bytes: int
    recommended_bytes: int = Field(description="measured bytes plus the margin, rounded up to 1 KiB")
    margin: float = Field(description="fraction added to the measured bytes")
    source: str = Field(description="the measurement and its device")


class Golden(_Value):
    """Samples with the outputs that a runtime produced for them, one .npy file per tensor.

    ``golden/raw_i.npy`` holds input i as the data provide it, ``input_i.npy`` as the model takes it,
    ``output_i.npy`` the output, and ``label.npy`` the labels, if any. The first axis is the sample axis;
    inputs and outputs have the types and layouts of the model file.
    """

    count: int
    device: str = Field(description="device whose runtime produced the outputs")
    emulated: bool = Field(False, description="whether that device was emulated")
    runtime: str
    files: tuple[str, ...]
    units: tuple[float, ...] = Field(
        description="per output, the size of one unit of the tolerance: 1 for integers, a quantization step "
        "for real numbers computed from integers, a small fraction of the largest value otherwise"
    )
    tolerance: int = Field(description="units by which a correct output may differ")


class Contract(_Value):
    """A model file for one device, with everything needed to feed and to check it."""

    schema_version: int = Field(SCHEMA, alias="schema")
    name: str
    version: str
    variant: str
    format: str
    device: str
    emulated: bool = Field(
        False,
        description="the device's own runtime, run on another processor: latency was not measured",
    )
    compiled: bool = Field(False, description="by the device's own compiler: unusable on other devices")
    file: BundleFile = Field(
        description="the file that a runtime loads, or the folder if the model is a folder; sha256 and "
        "size_bytes of a folder cover all files in it"
    )
    parts: tuple[BundleFile, ...] = Field(
        (), description="further files of the model, or all its files if it is a folder; omitted if empty"
    )
    inputs: tuple[TensorSpec, ...] = Field(description="in the order in which the model takes them")
    outputs: tuple[TensorSpec, ...]
    raw: tuple[Raw, ...] = Field((), description="inputs before preprocessing, where known")
    preprocessing: Preprocessing | tuple[Preprocessing, ...] = Field(
        description="one for all inputs; in schema 2, a list of one for each input, if they differ"
    )
    postprocess: Used | None = Field(
        None,
        description="decoder that the evaluation applied to the outputs, and that the device's own code "
        "replaces; omitted if there is none",
    )
    tasks: tuple[TaskOf, ...] = Field(
        (), description="what the outputs mean, where the recipe says so; omitted if empty"
    )
    labels: tuple[str, ...] = Field((), description="class names, in the order of the outputs")
    measured: Measurements = Field({}, description="measurements of this file on this device")
    operators: tuple[str, ...] = Field(
        (), description="kinds of operators in the file, sorted, if its format declares them"
    )
    arena: Arena | None = None
    runtime: str = Field("", description="name and version of the measured runtime")
    chain: tuple[str, ...] = Field((), description="stages that produced the file, in order")
    gates: tuple[Verdict, ...] = Field((), description="verdicts about this file on this device")
    golden: Golden | None = None
    notes: tuple[str, ...] = Field((), description="missing parts of the bundle, and why")
    files: tuple[BundleFile, ...] = Field((), description="every other file written with the model file")

    @model_validator(mode="after")
    def _every_input(self) -> "Contract":
        if not isinstance(self.preprocessing, Preprocessing) and len(self.preprocessing) != len(self.inputs):
            raise ValueError(
                f"preprocessing of {len(self.preprocessing)} inputs, but it has {len(self.inputs)}"
            )
        return self

    def encode(self) -> str:
        """The text of ``manifest.json``: the same contract gives the same text."""
        # Older readers reject fields that they do not know.
        unused = {name for name in ("parts", "postprocess", "tasks") if not getattr(self, name)}
        return self.model_dump_json(by_alias=True, indent=2, exclude=unused) + "\n"

    def preprocessing_of(self, index: int) -> Preprocessing:
        """The preprocessing of one input."""
        common = self.preprocessing
        return common if isinstance(common, Preprocessing) else common[index]

    @property
    def model_files(self) -> tuple[BundleFile, ...]:
        """All files of the model, the main file first."""
        is_folder = any(part.name.startswith(f"{self.file.name}/") for part in self.parts)
        return self.parts if is_folder else (self.file, *self.parts)

    @property
    def size_bytes(self) -> int:
        """Total size of the model's files."""
        return sum(file.size_bytes for file in self.model_files)

    @property
    def gates_pass(self) -> bool:
        """Whether no gate of this file blocks a release."""
        return not any(verdict.blocks for verdict in self.gates)


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore")

    schema_version: int = Field(alias="schema")


def read_contract(text: str | bytes, where: str) -> Contract:
    """Parse a ``manifest.json``.

    Raises:
        VerificationError: the text is not a contract, or has a later schema.
    """
    try:
        # A later schema may have unknown fields: check its number before validating the rest.
        schema = _Schema.model_validate_json(text).schema_version
        if schema not in (SCHEMA, BY_INPUT):
            raise VerificationError(
                f"{where} has schema {schema}; this edgeopt supports only schemas {SCHEMA} and {BY_INPUT}",
                fix="install the version of edgeopt that wrote it, or a later one",
            )
        return Contract.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        raise VerificationError(
            f"{where} is not a valid bundle contract: {location}: {first['msg']}", fix="pull it again"
        ) from error
