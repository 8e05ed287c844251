"""A plan: the branches of a recipe, what they have been built to so far, and what is impossible."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from edgeopt.config import registry
from edgeopt.devices.device import Device
from edgeopt.errors import UsageError
from edgeopt.model import InputPreprocessing, Model
from edgeopt.plugin import Stage, Trial
from edgeopt.recipe.recipe import Recipe
from edgeopt.results import Breakdown


class Branch(NamedTuple):
    """One variant in one format: the stages that build it, and the devices to measure it on."""

    variant: str
    format: str
    stages: tuple[Stage, ...]
    devices: tuple[Device, ...]

    @property
    def name(self) -> str:
        return f"{self.variant}.{self.format}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its stages, in order."""
        return tuple(registry.plugin_name(stage) for stage in self.stages)

    @property
    def binding(self) -> Stage | None:
        """The first stage whose result not every runtime of its format runs."""
        return next((stage for stage in self.stages if stage.runtimes), None)

    @property
    def bound(self) -> str:
        """Which runtimes alone run the artifact, as text; empty: all of its format."""
        if self.binding is None:
            return ""
        only = " or ".join(sorted(self.binding.runtimes))
        return f"only {only} runs what {registry.plugin_name(self.binding)} makes"

    def runs_on(self, device: Device) -> bool:
        """Whether the device has a runtime for the artifact."""
        runtime = device.runtimes.get(self.format)
        return runtime is not None and (self.binding is None or runtime in self.binding.runtimes)


class Step(NamedTuple):
    """One finished stage of a branch, with its notes and search trials."""

    stage: Stage
    model: Model
    digest: str
    cached: bool
    notes: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    arithmetic: Mapping[str, float] = {}
    """MACs, parameters and sparsity, if the file declares them."""
    breakdown: Breakdown | None = None
    """Size breakdown of a finished file."""


@dataclass
class Built:
    """The finished steps of a branch, and the reason if it is incomplete."""

    branch: Branch
    steps: list[Step] = field(default_factory=list)
    failure: str = ""
    lost: bool = False
    """Whether ``failure`` is the loss of a machine, the store or a process: built again, it may succeed."""

    @property
    def complete(self) -> bool:
        return len(self.steps) == len(self.branch.stages)

    @property
    def next_stage(self) -> Stage:
        return self.branch.stages[len(self.steps)]

    @property
    def source_step(self) -> Step | None:
        """The last step before any intent was applied; None if that is the source itself."""
        before = None
        for step in self.steps:
            if step.stage.fulfils:
                break
            before = step
        return before


class Impossible(NamedTuple):
    """One variant in one format that cannot be produced, with reason and fix."""

    variant: str
    format: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Plan:
    """All branches that would run, and the requests that are impossible."""

    recipe: Recipe
    source: Model
    branches: tuple[Branch, ...]
    impossible: tuple[Impossible, ...]
    notes: tuple[str, ...]

    @property
    def preprocessing(self) -> InputPreprocessing:
        """From raw samples to the inputs of the source model, and of every model made from it."""
        return InputPreprocessing(self.recipe.model.preprocess, self.source.inputs)

    def latest(self, built: Built) -> Model:
        """The result of the last finished step of a branch; without one, the source model."""
        return built.steps[-1].model if built.steps else self.source

    def demand_possible(self) -> None:
        """Reject a plan with impossible branches.

        Raises:
            UsageError: some requested artifacts cannot be produced; it names each of them.
        """
        if self.impossible:
            lines = [f"{i.variant} as {i.format}: {i.reason}\n    {i.fix}" for i in self.impossible]
            raise UsageError(
                f"{self.recipe.file}: {len(lines)} of the requested artifacts cannot be produced:\n  "
                + "\n  ".join(lines),
                fix="change the recipe, or build the rest with --keep-going"
                if self.branches
                else "nothing else is requested; to fetch a published model: edgeopt artifacts pull NAME",
            )
