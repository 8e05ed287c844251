"""The four kinds of plugin. A plugin's fields are its options, so the recipe entry *is* the plugin.

Class variables tell the rest: ``requires`` names the distributions (as pip knows them) that the
methods import, ``extra`` the pip extra that brings them, ``revision`` is raised when the same
options give another result. Frameworks are imported inside methods only.
"""

import hashlib
import importlib.metadata
import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgeopt.config.references import Code as Code
from edgeopt.config.references import ExistingPath as ExistingPath
from edgeopt.errors import DeviceError, UsageError
from edgeopt.model import Array, Model, Preprocessing
from edgeopt.results import Trial as Trial

Worker: TypeAlias = Literal["tensorflow", "torch", "plain"]


class Plugin(BaseModel):
    """Common to all kinds: typed options, and what must be installed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    revision: ClassVar[int] = 1

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Installed versions of ``requires``; a missing distribution is left out. Imports nothing."""
        return {name: found for name in cls.requires if (found := _installed_version(name))}

    @classmethod
    def missing(cls) -> list[str]:
        """Distributions of ``requires`` that are not installed."""
        present = cls.versions()
        return [name for name in cls.requires if name not in present]

    def options(self) -> dict[str, Any]:
        """The options as plain JSON values: what a cache key and a report record."""
        return self.model_dump(mode="json")


class Sample(NamedTuple):
    """One example: raw inputs without a batch axis, and its label where there is one."""

    inputs: tuple[Array, ...]
    label: int | Array | None = None


class Dataset(Plugin):
    """Yields samples one by one and never holds more than it must in memory."""

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """All samples, in a stable order; may be called again."""

    @abstractmethod
    def digest(self) -> str:
        """sha256 of the content: the same data gives the same digest wherever it lies."""


class Feed(NamedTuple):
    """A dataset with the recipe's preprocessing: what calibration and fine-tuning read."""

    dataset: Dataset
    preprocessing: Preprocessing

    def samples(self, model: Model) -> Iterator[Sample]:
        """Every sample with inputs of batch 1, in the order, layout and dtype ``model.inputs`` ask for."""
        for sample in self.dataset.samples():
            values = tuple(
                self.preprocessing.apply(value, spec)
                for value, spec in zip(sample.inputs, model.inputs, strict=True)
            )
            yield Sample(values, sample.label)

    def inputs(self, model: Model) -> Iterator[tuple[Array, ...]]:
        """The inputs of ``samples`` alone."""
        for sample in self.samples(model):
            yield sample.inputs


class Context(NamedTuple):
    """What a stage is given beside the model."""

    folder: Path
    """An empty scratch folder: every file of the result is written below it."""
    calibration: Feed | None
    """Calibration data, for stages with ``needs_calibration``."""
    progress: Callable[[str], None]
    """Says in one line what is going on."""
    training: Feed | None = None
    """Training data, for stages with ``needs_training``."""
    validation: Feed | None = None
    """Data to choose by, where the recipe gives some: never the evaluation data."""
    source: Model | None = None
    """The model before any intent was carried out, for stages with ``needs_source``: what to imitate."""
    checkpoints: Path | None = None
    """A folder that outlives a killed process: the same stage on the same model finds it again. Unlike
    ``folder`` it may hold what an earlier attempt wrote; it is removed when the stage is done."""
    note: Callable[[str], None] = print
    """Keeps a remark that the report shows beside the result."""
    trial: Callable[[Trial], None] = print
    """Keeps a row of what was tried on the way, which the report shows as well."""


class Stage(Plugin):
    """One step that turns a model into another. It knows formats, never its neighbours.

    ``fulfils`` says which intents of a recipe it carries out, and which schemes of each:
    ``{"quantize": {"int8"}}``. A stage that fulfils nothing only converts, and its result is held
    to the outputs of what went in.
    """

    accepts: ClassVar[frozenset[str]]
    produces: ClassVar[str]
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {}
    needs_calibration: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    needs_source: ClassVar[bool] = False
    after: ClassVar[frozenset[str]] = frozenset()
    """Intents that must be carried out before this stage, where a variant has them."""
    unsettled: ClassVar[bool] = False
    """Whether the result needs training before it is any good: it is not judged by itself if that follows."""
    by_default: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Intents, with options, that every optimized variant has where its format allows it, unless it says
    ``false``."""
    worker: ClassVar[Worker] = "plain"
    preference: ClassVar[int] = 0
    """Between chains of equal length, the one with the higher sum is taken."""

    @property
    def own_minutes(self) -> float:
        """Minutes that the options themselves ask for; they come on top of the recipe's limit."""
        return 0.0

    @abstractmethod
    def run(self, model: Model, context: Context) -> Model:
        """Carry the stage out; write below ``context.folder`` only.

        Raises:
            StageError: with what went wrong and what to do about it.
        """

    def key_parts(self) -> dict[str, str]:
        """Digests of files or code that the options point to and the result depends on."""
        return {}


class Score(NamedTuple):
    """A metric's value, and one value per sample where that makes sense (their mean is the value)."""

    value: float
    per_sample: NDArray[np.float64] | None = None


class Metric(Plugin):
    """Judges outputs. ``against`` says what it needs: labels, or the source model's outputs."""

    against: ClassVar[Literal["labels", "source"]] = "labels"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = ""

    @abstractmethod
    def score(self, outputs: Array, target: Array) -> Score:
        """Judge the first output, shape ``[n, ...]``, against labels ``[n]`` or outputs ``[n, ...]``.

        Raises:
            UsageError: when the target does not fit, such as a label out of range.
        """


class Connection(Plugin):
    """How a device is reached. Local, ssh, adb and emulator differ in nothing else.

    Remote names are relative to a job folder of its own, which ``open`` makes and ``close`` removes.
    """

    @abstractmethod
    def open(self) -> "Link":
        """Reach the device and make a fresh job folder there.

        Raises:
            DeviceError: when the device cannot be reached, with what to do about it.
        """

    def setup(self, requirements: Sequence[str], say: Callable[[str], None]) -> None:
        """Make what the device's runtimes live in, with ``requirements`` of Python; ``say`` tells each step.

        Only the command ``edgeopt devices setup`` calls this.

        Raises:
            UsageError: this way to a device needs no setting up.
            DeviceError: it cannot be made.
        """
        raise UsageError(
            "this device needs no setting up", fix="see what is there: edgeopt devices check NAME"
        )


class ConnectionCutError(DeviceError):
    """The device was there and then was not: worth another try, with a new link and all files sent again."""


class Link(ABC):
    """An open connection to one job folder on a device; use it as a context manager.

    Every method may raise ``ConnectionCutError``; the link is of no use then, only ``close`` is.
    """

    @abstractmethod
    def put(self, source: Path, name: str) -> None:
        """Copy a local file to ``name`` in the job folder."""

    @abstractmethod
    def python(self, arguments: Sequence[str], timeout: float) -> "subprocess.CompletedProcess[str]":
        """Run the device's Python with ``arguments`` in the job folder; captures stdout and stderr.

        Raises:
            DeviceError: when the device is lost or the time is up.
        """

    @abstractmethod
    def get(self, name: str, target: Path) -> None:
        """Copy ``name`` from the job folder to a local file."""

    @abstractmethod
    def close(self) -> None:
        """Remove the job folder and let go of the device."""

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def _installed_version(distribution: str) -> str | None:
    # Each look reads and parses a file, and a plan asks for every stage of every branch.
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def canonical(value: object) -> str:
    """JSON with sorted keys and no blanks: the same value gives the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest_of(value: object) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
