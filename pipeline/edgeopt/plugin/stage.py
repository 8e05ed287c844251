"""Stages: steps that transform one model into another."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from edgeopt.config.registry import Kind
from edgeopt.model import Model
from edgeopt.plugin.base import Plugin
from edgeopt.plugin.dataset import Feed
from edgeopt.plugin.metric import NamedMetric
from edgeopt.plugin.task import Decoder, Head
from edgeopt.results import Trial

Worker: TypeAlias = Literal["tensorflow", "torch", "plain"]


class Judging(NamedTuple):
    """How a recipe judges the outputs of its model, for stages that search."""

    metric: NamedMetric | None = None
    """The metric of the recipe; None if it has none against labels."""
    heads: tuple[Head, ...] = ()
    """The tasks of the recipe; empty if it names none."""
    decoder: Decoder | None = None
    outputs: tuple[str, ...] = ()
    """Names of the source model's outputs, as far as its file declares them: converters may rename them."""


class Context(NamedTuple):
    """The environment of a stage: scratch folder, data, and callbacks."""

    folder: Path
    """An empty scratch folder; all files of the result must be written below it."""
    calibration: Feed | None
    """Calibration data, for stages with ``needs_calibration``."""
    progress: Callable[[str], None]
    """Reports progress, one line per call."""
    training: Feed | None = None
    """Training data, for stages with ``needs_training``."""
    validation: Feed | None = None
    """Data for early stopping and searches, if the recipe has it; never the evaluation data."""
    source: Model | None = None
    """The model before any intent was applied, as a teacher; for stages with ``needs_source``."""
    judging: Judging = Judging()
    """How the recipe judges outputs, for searches."""
    checkpoints: Path | None = None
    """A folder for checkpoints that outlives a killed process: the next attempt of the same stage on the
    same model gets it again, with its contents. It is removed when the stage has finished."""
    note: Callable[[str], None] = print
    """Adds a note that the report shows with the result."""
    trial: Callable[[Trial], None] = print
    """Adds a candidate of a search to the report."""


class Stage(Plugin):
    """One step that transforms a model. It declares formats, and never refers to other stages.

    ``fulfils`` declares the intents of a recipe that it implements, with their schemes:
    ``{"quantize": {"int8"}}``. A stage without intents is a conversion, and its outputs must match those of
    its input model.
    """

    plugin_kind: ClassVar[Kind] = "stages"

    accepts: ClassVar[frozenset[str]]
    produces: ClassVar[str]
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {}
    needs_calibration: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    needs_source: ClassVar[bool] = False
    after: ClassVar[frozenset[str]] = frozenset()
    """Intents of the variant that must be fulfilled before this stage."""
    before: ClassVar[frozenset[str]] = frozenset()
    """Intents of the variant that must not be fulfilled before this stage, which would undo them."""
    needs_finetuning: ClassVar[bool] = False
    """Whether the result needs training to be accurate; it is not judged itself if training follows."""
    by_default: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Intents, with options, that apply to every optimized variant whose format supports them; ``false`` in
    the recipe disables them."""
    runtimes: ClassVar[frozenset[str]] = frozenset()
    """The only runtimes that run the result; empty: all of its format. Such a stage must preserve every bit
    of the outputs, which a run verifies in these runtimes."""
    worker: ClassVar[Worker] = "plain"
    uses_gpu: ClassVar[bool] = False
    """Whether it computes on a GPU that its framework sees: only the processes of such stages see one."""
    cost: ClassVar[int] = 1
    """Rough seconds for a small network. Of the stages that are ready, the cheapest starts first, so that the
    other workers get something to do soon."""
    preference: ClassVar[int] = 0
    """Among chains of equal length, the planner takes the one with the highest sum."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        # Former names, still used by third-party plugins.
        for old, new in (("unsettled", "needs_finetuning"), ("own_minutes", "extra_minutes")):
            if old in vars(cls):
                setattr(cls, new, vars(cls)[old])

    @classmethod
    def check_source(cls, source: Model) -> None:
        """Reject a source model that this stage cannot convert, as far as its header shows; default: none.

        Raises:
            UsageError: names the operator or layer, the cause and the way out.
        """

    @property
    def extra_minutes(self) -> float:
        """Minutes requested by the options, added to the recipe's limit."""
        return 0.0

    @abstractmethod
    def run(self, model: Model, context: Context) -> Model:
        """Run the stage; write only below ``context.folder``.

        Raises:
            StageError: the stage failed; the error contains cause and fix.
        """

    def key_parts(self) -> dict[str, str]:
        """Digests of referenced files or code on which the result depends; part of the cache key."""
        return {}
