"""Stages: one step that turns a model into another."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from edgeopt.config.registry import Kind
from edgeopt.model import Model
from edgeopt.plugin.base import Plugin
from edgeopt.plugin.dataset import Feed
from edgeopt.results import Trial

Worker: TypeAlias = Literal["tensorflow", "torch", "plain"]


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

    plugin_kind: ClassVar[Kind] = "stages"

    accepts: ClassVar[frozenset[str]]
    produces: ClassVar[str]
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {}
    needs_calibration: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    needs_source: ClassVar[bool] = False
    after: ClassVar[frozenset[str]] = frozenset()
    """Intents that must be carried out before this stage, where a variant has them."""
    needs_finetuning: ClassVar[bool] = False
    """Whether the result needs training before it is any good: it is not judged by itself if that follows."""
    by_default: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Intents, with options, that every optimized variant has where its format allows it, unless it says
    ``false``."""
    worker: ClassVar[Worker] = "plain"
    preference: ClassVar[int] = 0
    """Between chains of equal length, the one with the higher sum is taken."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        # What plug-ins of others called these, before they were named after what they mean.
        for old, new in (("unsettled", "needs_finetuning"), ("own_minutes", "extra_minutes")):
            if old in vars(cls):
                setattr(cls, new, vars(cls)[old])

    @property
    def extra_minutes(self) -> float:
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
