"""A recipe with all names resolved: what is wanted of which model, on which data and devices."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.config.yaml_source import Positions
from edgeopt.devices.device import Device
from edgeopt.formats.known import artifact_formats
from edgeopt.plugin import Dataset, Decoder, Head, NamedMetric, Stage
from edgeopt.plugin.contents import Source
from edgeopt.recipe.document import Latency, Limits, ModelPart
from edgeopt.results import Gate, Preference, Target

if TYPE_CHECKING:
    from edgeopt.recipe.searching import Search


class Intent(NamedTuple):
    """One requested optimization: ``quantize`` with scheme ``int8`` and options."""

    name: str
    scheme: str
    options: dict[str, Any]
    optional: bool = False
    """Applied by default, and dropped if the format does not support it."""

    def as_for(self, target: str) -> "Intent":
        """The intent for one format, with the options under that format's name merged in."""
        common = {key: value for key, value in self.options.items() if key not in artifact_formats()}
        return self._replace(options=common | dict(self.options.get(target) or {}))


class Variant(NamedTuple):
    """One way to optimize the model: intents, or ``stages`` if the recipe lists them explicitly."""

    name: str
    intents: tuple[Intent, ...] = ()
    stages: tuple[Stage, ...] | None = None
    search: "Search | None" = None
    """Set if the variant is yet to be found by searching."""
    formats: tuple[str, ...] = ()
    """The formats that it is built in; empty: all of the recipe."""


@dataclass(frozen=True)
class Recipe:
    """A recipe with all names resolved and all options validated."""

    file: Path
    name: str
    digest: str
    model: ModelPart
    calibration: Dataset | None
    evaluation: Dataset | None
    train: Dataset | None
    validation: Dataset | None
    allow_leak: bool
    heads: tuple[Head, ...]
    """The tasks; empty: it is found by the metrics, the labels and the outputs."""
    decoder: Decoder | None
    metrics: tuple[NamedMetric, ...]
    variants: tuple[Variant, ...]
    formats: tuple[str, ...]
    devices: tuple[Device, ...]
    gates: tuple[Gate, ...]
    limits: Limits
    latency: Latency
    ship: Preference = "smallest"
    target: Target | None = None
    document: str = ""
    """YAML text of the recipe as run: the file with the overrides applied."""
    positions: Positions = field(default_factory=dict, compare=False, repr=False)
    """Line and column of every key of the file, for messages."""
    notes: tuple[str, ...] = ()
    """What this run leaves out of the recipe, for the plan and the report."""
    inspection: Callable[[], Source] | None = field(default=None, compare=False, repr=False)
    """The result of inspecting the model file, which began while the recipe was being resolved."""
