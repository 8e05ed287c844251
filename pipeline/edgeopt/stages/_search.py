"""The fewest bytes that keep the accuracy: which layers of a quantized model need more precision.

Every layer's part in the error is measured by raising it alone. Layers are then raised in the order of
error removed per byte, and the shortest beginning of that order that holds the limit is found by doubling
and bisection, so that few candidates are ever judged. Judged is with validation or calibration data.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from edgeopt.config.files import write_text
from edgeopt.errors import StageError
from edgeopt.model import Array, Model
from edgeopt.plugin import Context, Stage, Trial, digest_of
from edgeopt.results import MAX_SNR_DB, snr_db

SAMPLES = 512
"""Of the validation or calibration data: as many are looked at, which bounds memory."""
DEFAULT_MAX_DROP = 0.01


class Budget(BaseModel):
    """How much a search may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(20, ge=1, description="candidates whose accuracy is judged")
    minutes: float = Field(15.0, gt=0, description="minutes for all of it, sensitivity included")


class Searching(Stage):
    """A stage that can look for the fewest layers whose precision must be raised."""

    scheme: str
    max_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="accuracy that may be lost, as a share: raises the precision of as few layers as needed, "
        "judged on validation or calibration data",
    )
    budget: Budget = Field(Budget(), description="how much the search for max_drop may cost")

    @property
    def allowed_drop(self) -> float | None:
        """What the search has to hold; None: there is none."""
        return DEFAULT_MAX_DROP if self.scheme == "mixed" and self.max_drop is None else self.max_drop

    @property
    def extra_minutes(self) -> float:
        """The budget of a search, if there is one."""
        return 0.0 if self.allowed_drop is None else self.budget.minutes


class Quantizing(Protocol):
    """One model, calibrated once and quantized again and again."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Every layer whose precision can be raised, and the bytes by which the file would grow."""
        ...

    def make(self, raised: frozenset[str]) -> Path:
        """The quantized file with these layers in higher precision; it stays until the next call."""
        ...

    def outputs(self, path: Path | None) -> NDArray[np.float32]:
        """First output ``[n, ...]`` of a file on the search's samples; None: of the float model."""


def evidence(
    model: Model, context: Context, limit: int = SAMPLES
) -> tuple[list[tuple[Array, ...]], Array | None]:
    """Inputs of batch 1 and labels of the samples that a search may look at.

    Raises:
        StageError: there are neither validation nor calibration data.
    """
    feed = context.validation or context.calibration
    if feed is None:
        raise StageError(
            "a search with max_drop needs data to judge by",
            fix="add data.validation, or data.calibration, to the recipe",
        )
    inputs: list[tuple[Array, ...]] = []
    labels: list[int] = []
    for sample in feed.samples(model):
        inputs.append(sample.inputs)
        if sample.label is not None and np.ndim(sample.label) == 0:
            labels.append(int(sample.label))
        if len(inputs) == limit:
            break
    return inputs, np.asarray(labels) if labels and len(labels) == len(inputs) else None


def search(
    quantizing: Quantizing,
    labels: Array | None,
    *,
    max_drop: float,
    budget: Budget,
    context: Context,
) -> frozenset[str]:
    """The layers to raise so that at most ``max_drop`` of accuracy is lost against the float model.

    With labels the drop is of top-1; without, it is the share of samples whose answer changes. Of two
    candidates that hold, the smaller one is taken. Where nothing holds within the budget the best candidate
    so far is, and ``context.note`` says so. Interrupted, it goes on with what ``context.checkpoints`` keeps.
    """
    return _Search(quantizing, labels, max_drop, budget, context).run()


class _Search:
    def __init__(
        self,
        quantizing: Quantizing,
        labels: Array | None,
        max_drop: float,
        budget: Budget,
        context: Context,
    ) -> None:
        self.quantizing = quantizing
        self.labels = labels
        self.max_drop = max_drop
        self.budget = budget
        self.context = context
        self.memory = _Memory(context.checkpoints)
        self.deadline = time.monotonic() + budget.minutes * 60 - self.memory.seconds
        self.reference = _flat(quantizing.outputs(None))
        self.trials: dict[frozenset[str], Trial] = {}
        self.alone: list[Trial] = []
        """What raising single layers removes of the error: how sensitive each of them is."""
        self.stopped = ""

    def run(self) -> frozenset[str]:
        plain = self._try(frozenset())
        chosen: frozenset[str] = frozenset()
        if not self._holds(plain):
            chosen = self._fewest(self._order())
        self._tell(chosen)
        return chosen

    def _fewest(self, order: list[str]) -> frozenset[str]:
        """The shortest beginning of ``order`` that holds: doubled until one does, then bisected."""
        fails, holds, length = 0, 0, 1
        while order and not holds and not self._over():
            length = min(length, len(order))
            if self._holds(self._try(frozenset(order[:length]))):
                holds = length
            elif length == len(order):
                break
            else:
                fails, length = length, length * 2
        while holds - fails > 1 and not self._over():
            middle = (fails + holds) // 2
            if self._holds(self._try(frozenset(order[:middle]))):
                holds = middle
            else:
                fails = middle
        if holds:
            return self._without_idle(order[:holds])
        return min(self.trials, key=lambda raised: (self.trials[raised].drop, self.trials[raised].size_bytes))

    def _without_idle(self, layers: list[str]) -> frozenset[str]:
        """Take back, dearest first, what turns out not to be needed beside the rest."""
        kept = frozenset(layers)
        for layer in sorted(layers[:-1], key=lambda name: -self.quantizing.layers[name]):
            if self._over():
                break
            if self._holds(self._try(kept - {layer})):
                kept -= {layer}
        return kept

    def _order(self) -> list[str]:
        """Layers by the error that raising each alone removes, per byte.

        Those that remove none alone come last: together with others they may.
        """
        base = _noise(self._looked_at(frozenset()))
        gains: dict[str, float] = {}
        names = list(self.quantizing.layers)
        for number, name in enumerate(names, 1):
            if time.monotonic() > self.deadline and gains:
                self.stopped = f"{self.budget.minutes:g} minutes were over while layers were still measured"
                break
            alone = self._looked_at(frozenset({name}))
            self.alone.append(alone.model_copy(update={"status": "alone"}))
            gains[name] = (base - _noise(alone)) / max(self.quantizing.layers[name], 1)
            self.context.progress(f"sensitivity of layer {number} of {len(names)}: {name}")
        return sorted(gains, key=lambda name: (-gains[name], name))

    def _try(self, raised: frozenset[str]) -> Trial:
        if raised not in self.trials:
            trial = self.trials[raised] = self._looked_at(raised)
            self.context.progress(
                f"trial {len(self.trials)} of {self.budget.trials}: {trial.name}, drop {trial.drop:.2%}, "
                f"{trial.size_bytes:,} bytes"
            )
        return self.trials[raised]

    def _looked_at(self, raised: frozenset[str]) -> Trial:
        """Made and judged, unless it was before."""
        key = digest_of(sorted(raised))
        known = self.memory.get(key)
        if known is None:
            try:
                found = self._judged(raised, self.quantizing.make(raised))
            except StageError as error:
                if not raised:
                    raise
                found = self._unmade(raised, error)
            known = found.model_dump(mode="json")
            self.memory.put(key, known)
        return Trial.model_validate(known)

    def _judged(self, raised: frozenset[str], path: Path) -> Trial:
        outputs = _flat(self.quantizing.outputs(path))
        answers, before = outputs.argmax(axis=1), self.reference.argmax(axis=1)
        several = self.reference.shape[1] > 1
        agreement = float((answers == before).mean()) if several else None
        error = float(((outputs - self.reference) ** 2).sum())
        signal = float((self.reference**2).sum())
        if self.labels is not None and several:
            drop = float((before == self.labels).mean() - (answers == self.labels).mean())
        else:
            drop = 1.0 - agreement if agreement is not None else min(1.0, error / max(signal, 1e-300))
        return Trial(
            name=f"{len(raised)} of {len(self.quantizing.layers)} layers raised",
            raised=tuple(sorted(raised)),
            size_bytes=path.stat().st_size,
            drop=drop,
            agreement=agreement,
            snr_db=snr_db(signal, error),
            samples=len(outputs),
        )

    def _unmade(self, raised: frozenset[str], error: StageError) -> Trial:
        """A candidate that cannot be had is as bad as one can be: the search goes on without it."""
        return Trial(
            name=f"{len(raised)} of {len(self.quantizing.layers)} layers raised: {error.message}",
            raised=tuple(sorted(raised)),
            size_bytes=0,
            drop=1.0,
        )

    def _holds(self, trial: Trial) -> bool:
        return trial.drop <= self.max_drop + 1e-9

    def _over(self) -> bool:
        if len(self.trials) >= self.budget.trials:
            self.stopped = f"the budget of {self.budget.trials} trials was used up"
        elif time.monotonic() > self.deadline:
            self.stopped = f"the budget of {self.budget.minutes:g} minutes was used up"
        return bool(self.stopped)

    def _tell(self, chosen: frozenset[str]) -> None:
        rows = list(self.trials.items())
        for raised, trial in rows:
            better = not trial.samples or any(
                other.samples
                and other.drop <= trial.drop
                and other.size_bytes <= trial.size_bytes
                and (other.drop, other.size_bytes) != (trial.drop, trial.size_bytes)
                for other in self.trials.values()
            )
            status = "chosen" if raised == chosen else "dominated" if better else "kept"
            self.context.trial(trial.model_copy(update={"status": status}))
        for trial in self.alone:
            self.context.trial(trial)
        taken = self.trials[chosen]
        layers = f": {', '.join(sorted(chosen))}" if chosen else ""
        data = "validation" if self.context.validation is not None else "calibration"
        what = f"drop {taken.drop:.2%} on {taken.samples} {data} samples after {len(rows)} trials, "
        what += f"{len(chosen)} of {len(self.quantizing.layers)} layers in higher precision{layers}"
        if not self._holds(taken):
            reason = self.stopped or "raising every layer that adds error was not enough"
            self.context.note(f"max_drop {self.max_drop:g} was not reached, {reason}; best so far: {what}")
        else:
            self.context.note(f"max_drop {self.max_drop:g} holds: {what}")


class _Memory:
    """What was found out before an interruption, one JSON file, written after every finding."""

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "search.json" if folder is not None else None
        self.began = time.monotonic()
        self.known: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        """Time that earlier attempts took."""
        if self.path is not None:
            try:
                record = json.loads(self.path.read_text("utf-8"))
                self.known, self.seconds = record["known"], float(record["seconds"])
            except (OSError, ValueError, KeyError, TypeError):
                pass  # nothing there yet, or cut off: it is found out again

    def get(self, key: str) -> dict[str, Any] | None:
        return self.known.get(key)

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.known[key] = value
        if self.path is None:
            return
        spent = self.seconds + time.monotonic() - self.began
        write_text(self.path, json.dumps({"known": self.known, "seconds": spent}))


def _flat(outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    return outputs.reshape(len(outputs), -1).astype(np.float64)


def _noise(trial: Trial) -> float:
    """Power of the error of the outputs, a share of their own power."""
    return 10 ** (-(trial.snr_db if trial.snr_db is not None else -MAX_SNR_DB) / 10)
