"""What a bundle says of itself: the types behind its ``manifest.json``.

Programs read it, so nothing leaves it or changes its meaning without a new number of the schema.
"""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import VerificationError
from edgeopt.model import Preprocessing, TensorSpec
from edgeopt.results import Measurement, Verdict

SCHEMA = 1
FILE = "manifest.json"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BundleFile(_Value):
    """One file. ``name`` is its path in the bundle, with ``/``."""

    name: str
    sha256: str
    size_bytes: int = Field(ge=0)


class Raw(_Value):
    """One input before preprocessing, as the evaluation data give it, without a batch axis."""

    shape: tuple[int, ...]
    dtype: str = Field(description="numpy's name of the type")


class Arena(_Value):
    """Memory that TensorFlow Lite Micro needs for tensors and bookkeeping, in bytes."""

    measured_bytes: int
    recommended_bytes: int = Field(description="measured, with the margin, rounded up to 1 KiB")
    margin: float = Field(description="share of what was measured that was added")
    source: str = Field(description="what was measured, and on which device")


class Golden(_Value):
    """Samples with the answers that a runtime gave for them, each tensor in a file of its own (.npy).

    ``golden/raw_i.npy`` holds input i as the data give it, ``input_i.npy`` as the model takes it,
    ``output_i.npy`` what came out, and ``label.npy`` the labels, where there are any. The first axis
    counts the samples; inputs and outputs have the types and layouts of the model file.
    """

    count: int
    device: str = Field(description="whose runtime gave the outputs")
    emulated: bool = Field(False, description="whether that device was emulated")
    runtime: str
    files: tuple[str, ...]
    units: tuple[float, ...] = Field(
        description="per output, how much one unit of the tolerance is: 1 for integers, a step of the "
        "quantization for real numbers made of integers, a small share of the largest value for others"
    )
    tolerance: int = Field(description="units by which a right answer may differ")


class Contract(_Value):
    """A model file for one device, and all that is needed to feed it and to check it."""

    schema_version: int = Field(SCHEMA, alias="schema")
    name: str
    version: str
    variant: str
    format: str
    device: str
    emulated: bool = Field(
        False,
        description="the runtime is the device's, carried out on another processor: no time was measured",
    )
    compiled: bool = Field(False, description="made by the device's own compiler: of no use elsewhere")
    file: BundleFile
    inputs: tuple[TensorSpec, ...] = Field(description="in the order in which the model takes them")
    outputs: tuple[TensorSpec, ...]
    raw: tuple[Raw, ...] = Field((), description="what preprocessing begins with, per input, where known")
    preprocessing: Preprocessing
    labels: tuple[str, ...] = Field((), description="class names, in the order of the outputs")
    measured: dict[str, Measurement] = Field({}, description="of this file on this device")
    operators: tuple[str, ...] = Field((), description="kinds of operators in a TFLite file, sorted")
    arena: Arena | None = None
    runtime: str = Field("", description="name and version of the runtime that was measured")
    chain: tuple[str, ...] = Field((), description="stages that made the file, in order")
    gates: tuple[Verdict, ...] = Field((), description="verdicts about this file on this device")
    golden: Golden | None = None
    notes: tuple[str, ...] = Field((), description="what the bundle does not have, and why")
    files: tuple[BundleFile, ...] = Field((), description="every other file that was made with this one")

    def encode(self) -> str:
        """The text of ``manifest.json``: the same contract gives the same text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @property
    def gates_hold(self) -> bool:
        """Whether no gate on this row stands in the way of a release."""
        return not any(verdict.blocks for verdict in self.gates)


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore")

    schema_version: int = Field(alias="schema")


def read_contract(text: str | bytes, where: str) -> Contract:
    """Parse a ``manifest.json``.

    Raises:
        VerificationError: it is none, or of a later schema.
    """
    try:
        # A later schema may have what is not known here: its number is looked at first.
        schema = _Schema.model_validate_json(text).schema_version
        if schema != SCHEMA:
            raise VerificationError(
                f"{where} has schema {schema}, only {SCHEMA} is known here", fix="pip install -U edgeopt"
            )
        return Contract.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise VerificationError(
            f"{where} is no contract of a bundle: {place}: {first['msg']}", fix="pull it again"
        ) from error
