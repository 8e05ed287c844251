"""Accuracy-aware mixed precision: which layers of a quantized model need a higher precision.

The sensitivity of each layer is measured by raising its precision alone. Layers are ranked by the error
removed per byte, and the shortest prefix of the ranking that meets the limit is found by doubling and
bisection, so that few candidates are evaluated. They are evaluated on validation or calibration data.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.config.files import write_text
from edgeopt.errors import StageError
from edgeopt.model import Outputs
from edgeopt.plugin import Context, Labels, Stage, Trial, digest_of
from edgeopt.stages._judging import Judge, noise_of

DEFAULT_MAX_DROP = 0.01
JOINED = "joined outputs"
"""Name, in a search, of the operators without weights that join values of several layers in one output.

In 8 bits all of them share one scale. In float, they cost no bytes, and each value keeps its own scale.
"""


def mixed_note(ratio: float, *, in_float: bool = True) -> str:
    """The note on an output that joins values of very different size."""
    note = (
        f"an output joins values whose sizes differ {ratio:,.0f}-fold, and in 8 bits they share one scale: "
    )
    if in_float:
        return note + "the operators that join them stay in float, which adds no bytes"
    return note + "the small ones are lost; set io: float32 to keep the operators that join them in float"


class Budget(BaseModel):
    """Limits on the cost of a search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(20, ge=1, description="maximum number of candidates to evaluate")
    minutes: float = Field(15.0, gt=0, description="time limit in minutes, sensitivity measurement included")


class Searching(Stage):
    """A stage that can search for the fewest layers whose precision must be raised."""

    scheme: str
    max_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="largest accuracy drop, as a fraction: raises the precision of as few layers as needed, "
        "evaluated on validation or calibration data",
    )
    budget: Budget = Field(Budget(), description="limits on the search for max_drop")

    @property
    def allowed_drop(self) -> float | None:
        """Limit that the search must meet; None: no search."""
        return DEFAULT_MAX_DROP if self.scheme == "mixed" and self.max_drop is None else self.max_drop

    @property
    def extra_minutes(self) -> float:
        """Time budget of the search, if there is one."""
        return 0.0 if self.allowed_drop is None else self.budget.minutes


class Quantizing(Protocol):
    """One model, calibrated once and quantized repeatedly."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Every layer whose precision can be raised, with the bytes that this adds to the file."""
        ...

    def make(self, raised: frozenset[str]) -> Path:
        """The quantized file with these layers in higher precision; valid until the next call."""
        ...

    def outputs(self, path: Path | None) -> Outputs:
        """All outputs of a file on the search's samples; None: the float model."""


def search(
    quantizing: Quantizing,
    labels: Labels | None,
    *,
    max_drop: float,
    budget: Budget,
    context: Context,
) -> frozenset[str]:
    """The layers to raise so that the accuracy drops by at most ``max_drop`` against the float model.

    The drop is that of ``Judge``. Of two candidates within the limit, the smaller one is chosen. If none is
    found within the budget, the best one so far is returned and reported with ``context.note``. An
    interrupted search resumes from ``context.checkpoints``.
    """
    return _Search(quantizing, labels, max_drop, budget, context).run()


class _Search:
    def __init__(
        self,
        quantizing: Quantizing,
        labels: Labels | None,
        max_drop: float,
        budget: Budget,
        context: Context,
    ) -> None:
        self.quantizing = quantizing
        self.max_drop = max_drop
        self.budget = budget
        self.context = context
        self.checkpoint = _Checkpoint(context.checkpoints)
        # Time spent before an interruption counts towards the budget.
        self.deadline = time.monotonic() + budget.minutes * 60 - self.checkpoint.seconds
        self.judge = Judge(quantizing.outputs(None), labels, context.judging)
        self.trials: dict[frozenset[str], Trial] = {}
        self.alone: list[Trial] = []
        """Sensitivity of each layer: the evaluations with only that layer raised."""
        self.stopped = ""

    def run(self) -> frozenset[str]:
        plain = self._try(frozenset())
        chosen: frozenset[str] = frozenset()
        if not self._holds(plain):
            chosen = self._shortest_prefix(self._ranking())
        self._report(chosen)
        return chosen

    def _shortest_prefix(self, order: list[str]) -> frozenset[str]:
        """The shortest prefix of ``order`` within the limit: doubled until one is, then bisected.

        The drop is close to monotonic in the prefix length, so bisection is safe; where it is not, the
        result is still within the limit, only not the shortest.
        """
        fails, holds, length = 0, 0, 1
        while order and not holds and not self._budget_exhausted():
            length = min(length, len(order))
            if self._holds(self._try(frozenset(order[:length]))):
                holds = length
            elif length == len(order):
                break
            else:
                fails, length = length, length * 2
        while holds - fails > 1 and not self._budget_exhausted():
            middle = (fails + holds) // 2
            if self._holds(self._try(frozenset(order[:middle]))):
                holds = middle
            else:
                fails = middle
        if holds:
            return self._without_redundant(order[:holds])
        return min(self.trials, key=lambda raised: (self.trials[raised].drop, self.trials[raised].size_bytes))

    def _without_redundant(self, layers: list[str]) -> frozenset[str]:
        """Drop raised layers again, most expensive first, that are redundant given the others."""
        kept = frozenset(layers)
        # The prefix without its last layer has already failed.
        for layer in sorted(layers[:-1], key=lambda name: -self.quantizing.layers[name]):
            if self._budget_exhausted():
                break
            # Sensitivities were measured one by one; in combination, a layer may have become redundant.
            if self._holds(self._try(kept - {layer})):
                kept -= {layer}
        return kept

    def _ranking(self) -> list[str]:
        """Layers by the error that raising each alone removes, per byte.

        Layers that remove none alone come last, but are not excluded: they may in combination.
        """
        base = noise_of(self._evaluate(frozenset()).snr_db)
        gains: dict[str, float] = {}
        names = list(self.quantizing.layers)
        for number, name in enumerate(names, 1):
            if time.monotonic() > self.deadline and gains:
                self.stopped = f"{self.budget.minutes:g} minutes ran out while measuring sensitivities"
                break
            alone = self._evaluate(frozenset({name}))
            self.alone.append(alone.model_copy(update={"status": "alone"}))
            gains[name] = (base - noise_of(alone.snr_db)) / max(self.quantizing.layers[name], 1)
            self.context.progress(f"sensitivity of layer {number} of {len(names)}: {name}")
        return sorted(gains, key=lambda name: (-gains[name], name))

    def _try(self, raised: frozenset[str]) -> Trial:
        if raised not in self.trials:
            trial = self.trials[raised] = self._evaluate(raised)
            self.context.progress(
                f"trial {len(self.trials)} of {self.budget.trials}: {trial.name}, drop {trial.drop:.2%}, "
                f"{trial.size_bytes:,} bytes"
            )
        return self.trials[raised]

    def _evaluate(self, raised: frozenset[str]) -> Trial:
        """Quantize and evaluate a candidate, unless the checkpoint has its result."""
        key = digest_of(sorted(raised))
        record = self.checkpoint.get(key)
        if record is None:
            try:
                trial = self._measure(raised, self.quantizing.make(raised))
            except StageError as error:
                # Without raised layers the error concerns the model itself, not one combination.
                if not raised:
                    raise
                trial = self._failed(raised, error)
            record = trial.model_dump(mode="json")
            self.checkpoint.put(key, record)
        return Trial.model_validate(record)

    def _measure(self, raised: frozenset[str], path: Path) -> Trial:
        outputs = self.quantizing.outputs(path)
        compared = self.judge.compare(outputs)
        return Trial(
            name=f"{len(raised)} of {len(self.quantizing.layers)} layers raised",
            raised=tuple(sorted(raised)),
            size_bytes=path.stat().st_size,
            drop=self.judge.drop(outputs, compared),
            agreement=compared.agreement,
            snr_db=compared.snr_db,
            samples=len(self.judge.reference.arrays[0]),
        )

    def _failed(self, raised: frozenset[str], error: StageError) -> Trial:
        """The result of a candidate that cannot be produced: the worst possible drop."""
        return Trial(
            name=f"{len(raised)} of {len(self.quantizing.layers)} layers raised: {error.message}",
            raised=tuple(sorted(raised)),
            size_bytes=0,
            drop=1.0,
        )

    def _holds(self, trial: Trial) -> bool:
        # A drop is a sum of fractions: 0.03 computed in floating point may exceed 0.03.
        return trial.drop <= self.max_drop + 1e-9

    def _budget_exhausted(self) -> bool:
        if len(self.trials) >= self.budget.trials:
            self.stopped = f"the budget of {self.budget.trials} trials is used up"
        elif time.monotonic() > self.deadline:
            self.stopped = f"the budget of {self.budget.minutes:g} minutes is used up"
        return bool(self.stopped)

    def _report(self, chosen: frozenset[str]) -> None:
        rows = list(self.trials.items())
        for raised, trial in rows:
            dominated = not trial.samples or any(
                other.samples
                and other.drop <= trial.drop
                and other.size_bytes <= trial.size_bytes
                and (other.drop, other.size_bytes) != (trial.drop, trial.size_bytes)
                for other in self.trials.values()
            )
            status = "chosen" if raised == chosen else "dominated" if dominated else "kept"
            self.context.trial(trial.model_copy(update={"status": status}))
        for trial in self.alone:
            self.context.trial(trial)
        result = self.trials[chosen]
        layers = f": {', '.join(sorted(chosen))}" if chosen else ""
        data = "validation" if self.context.validation is not None else "calibration"
        summary = f"drop {result.drop:.2%} on {result.samples} {data} samples after {len(rows)} trials, "
        summary += f"{len(chosen)} of {len(self.quantizing.layers)} layers in higher precision{layers}"
        if not self._holds(result):
            reason = self.stopped or "even with every layer that adds error raised"
            self.context.note(f"max_drop {self.max_drop:g} was not reached, {reason}; best so far: {summary}")
        else:
            self.context.note(f"max_drop {self.max_drop:g} holds: {summary}")


class _Checkpoint:
    """Results from before an interruption: one JSON file, written after every evaluation."""

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "search.json" if folder is not None else None
        self.started_at = time.monotonic()
        self.known: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        """Time spent by earlier attempts."""
        if self.path is not None:
            try:
                record = json.loads(self.path.read_text("utf-8"))
                self.known, self.seconds = record["known"], float(record["seconds"])
            except (OSError, ValueError, KeyError, TypeError):
                pass  # absent or truncated: the results are computed again

    def get(self, key: str) -> dict[str, Any] | None:
        return self.known.get(key)

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.known[key] = value
        if self.path is None:
            return
        spent = self.seconds + time.monotonic() - self.started_at
        write_text(self.path, json.dumps({"known": self.known, "seconds": spent}))
