"""Removing channels or weights of Keras models."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import archive as keras_archive
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.keras.files.archive import Kept
from edgeopt.formats.keras.graph.layers import Costs, costs, graph_of
from edgeopt.formats.keras.prune import obs_pruning as keras_obs_pruning
from edgeopt.formats.keras.prune import remove_channels as keras_remove_channels
from edgeopt.formats.keras.prune import sparsity as keras_sparsity
from edgeopt.formats.keras.prune.channels import Bundle, Channels
from edgeopt.formats.keras.prune.selection import Choice, choose, keeping
from edgeopt.model import Array, Model
from edgeopt.plugin import Context, Stage, Worker

EVIDENCE = 512
"""Calibration samples by which channels are weighed."""
BATCH = 32


class PruneKeras(Stage):
    """Make a Keras model smaller: whole channels, or zeros among its weights.

    ``channels`` gives a physically smaller model, which every runtime profits from. ``weights`` and
    ``n_m`` leave the shapes as they are: they pay off in the download, and on hardware that skips zeros. The
    zeros are recorded in the file, and fine-tuning keeps them; those of ``weights`` it brings in step by
    step.

    Channels that layers share (through Add, Concatenate, depthwise convolution ...) are removed together;
    those that a layer unknown to edgeopt touches stay, with a note.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras"})
    produces: ClassVar[str] = "keras"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"prune": frozenset({"channels", "weights", "n_m"})}
    needs_calibration: ClassVar[bool] = True
    needs_finetuning: ClassVar[bool] = True
    worker: ClassVar[Worker] = "tensorflow"
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "h5py")
    extra: ClassVar[str | None] = "keras"

    scheme: Literal["channels", "weights", "n_m"] | None = Field(
        None, description="what is removed; told by the option that is given"
    )
    channels: float | None = Field(
        None, description="share of the channels of every layer to remove, below 1"
    )
    weights: float | None = Field(None, description="share of the weights of every layer to zero, below 1")
    n_m: tuple[int, int] | None = Field(
        None, description="[n, m]: n of every m weights along the input channels stay, the rest is zero"
    )
    round_to: int = Field(
        8, ge=1, description="channels stay in multiples of this; a layer with no more keeps all"
    )
    importance: Literal["outputs", "weights"] = Field(
        "outputs",
        description="weigh channels by what the layers that read them would miss, which then make up for it; "
        "or by the norm of the weights that make them",
    )
    keep: tuple[str, ...] = Field((), description="layers, by name or pattern, that keep everything")
    layers: dict[str, float] = Field(
        {}, description="share for layers, by name or pattern, instead of that for all"
    )
    trust: bool = Field(False, description="load models with Lambda layers, which run Python code")

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        given = [name for name in ("channels", "weights", "n_m") if getattr(self, name) is not None]
        if len(given) != 1 or self.scheme not in (None, given[0]):
            raise ValueError("give one of channels, weights and n_m")
        shares = {"channels": self.channels, "weights": self.weights, **self.layers}
        for name, share in shares.items():
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{name}: a share of {share:g} is not from 0 to below 1, where all is gone")
        if (self.channels == 0 or self.weights == 0) and not self.layers:
            raise ValueError(f"{given[0]}: a share of 0 removes nothing")
        if self.n_m is not None and not 0 < self.n_m[0] < self.n_m[1]:
            raise ValueError("n_m: n of m weights stay, with 0 < n < m")
        return self

    def run(self, model: Model, context: Context) -> Model:
        """Prune one model.

        Raises:
            StageError: when nothing can be removed, a pattern matches no layer, or a layer would be emptied.
        """
        network = keras_loading.load_keras(model.path, self.trust)
        kept = keras_archive.kept_in(model.path)
        dense: dict[str, keras_sparsity.Weights] = {}
        if self.channels is not None:
            network = self._smaller(network, self.channels, model.path.name, context)
        else:
            before = {k.name: k.values.copy() for k in keras_sparsity.kernels(network, model.path.name)}
            done = self._sparser(network, model.path.name, context)
            kept = kept | done
            if self.weights is not None:  # a pattern is better trained with from the start
                dense = {name: before[name] for name in done.sparse}
        path = context.folder / "model.keras"
        keras_archive.save(network, path, kept, dense)
        inputs, outputs = keras_archive.specs(network, model.inputs)
        return Model(format="keras", path=path, inputs=inputs, outputs=outputs)

    def _smaller(self, network: Any, share: float, name: str, context: Context) -> Any:
        graph = graph_of(network, name)
        channels = Channels(graph)
        bundles = channels.bundles()
        counts = keeping(bundles, share=share, round_to=self.round_to, keep=self.keep, layers=self.layers)
        smaller_ones = [b for b, stay in zip(bundles, counts, strict=True) if stay < len(b.channels)]
        found = self._readers(network, channels, smaller_ones, name, context)

        def importance(bundle: Bundle) -> NDArray[np.float64]:
            weighed = keras_obs_pruning.missed(bundle, found)
            return keras_remove_channels.importance(channels, bundle) if weighed is None else weighed

        choice = choose(bundles, counts, importance)
        if not len(choice.removed):
            raise StageError(
                f"no channel of {name} can be removed: {_why(choice, self.round_to)}",
                fix="ask for more, set a smaller 'round_to', or prune 'weights' instead",
            )
        context.progress(f"removing {len(choice.removed)} groups of channels")
        keras_obs_pruning.make_up(found, choice.removed)
        smaller = keras_remove_channels.without(network, channels, choice.removed, name)
        before, after = costs(network, graph), costs(smaller, graph_of(smaller, name))
        context.note(_told(before, after))
        context.note("channels kept: " + "; ".join(_counted(choice)))
        if unknown := _unknown(choice):
            context.note(f"channels stay where they meet layers that cannot be cut: {unknown}")
        return smaller

    def _readers(
        self, network: Any, channels: Channels, wanted: list[Bundle], name: str, context: Context
    ) -> list[keras_obs_pruning.Reader]:
        """The layers that read channels, with what they see of the calibration data."""
        if self.importance == "weights" or not wanted:
            return []
        if context.calibration is None:
            context.note("no calibration data: channels are weighed by the norm of their weights")
            return []
        context.progress("weighing channels")
        inputs, _ = keras_archive.specs(network, ())
        described = Model(format="keras", path=Path(name), inputs=inputs)
        samples = islice(context.calibration.inputs(described), EVIDENCE)
        return keras_obs_pruning.readers(network, channels, wanted, _batches(samples), name)

    def _sparser(self, network: Any, name: str, context: Context) -> Kept:
        found = keras_sparsity.chosen(keras_sparsity.kernels(network, name), self.keep)
        dense: list[str] = []
        if self.n_m is not None:
            kept, dense = keras_sparsity.thin_out_pattern(found, *self.n_m)
        else:
            kept = keras_sparsity.thin_out(found, self.weights or 0.0, self.layers)
        zeros = sum(kernel.values.size * kept.sparse.get(kernel.name, 0.0) for kernel in found)
        total = int(network.count_params())
        context.note(
            f"{zeros / total:.0%} of {total:,} parameters are zero: download size only (compressed); "
            "neither the file nor the time per inference shrinks on runtimes that do not skip zeros"
        )
        if dense:
            context.note(f"dense, because their input channels do not fit the pattern: {', '.join(dense)}")
        return kept


def _batches(samples: Iterator[tuple[Array, ...]]) -> Iterator[list[NDArray[np.float32]]]:
    while several := list(islice(samples, BATCH)):
        yield [np.concatenate(values).astype(np.float32) for values in zip(*several, strict=True)]


def _told(before: Costs, after: Costs) -> str:
    return (
        f"MACs {before.macs:,} to {after.macs:,} ({after.macs / before.macs - 1:+.1%}), "
        f"parameters {before.parameters:,} to {after.parameters:,} "
        f"({after.parameters / before.parameters - 1:+.1%})"
    )


def _counted(choice: Choice) -> list[str]:
    return [f"{'+'.join(paths)} {after} of {before}" for paths, before, after in choice.counts]


def _unknown(choice: Choice) -> str:
    """What froze channels, without the model's own output."""
    found = (
        f"{reason} ({'+'.join(paths)})" for paths, reason in choice.frozen if not reason.startswith("the ")
    )
    return ", ".join(dict.fromkeys(found))


def _why(choice: Choice, round_to: int) -> str:
    reasons = [f"{'+'.join(paths)} meets {reason}" for paths, reason in choice.frozen]
    rest = len(choice.counts) - len(choice.frozen)
    if rest:
        reasons.append(f"what is left keeps all when rounded to multiples of {round_to}")
    return "; ".join(reasons) or "it has no convolution or dense layer"
