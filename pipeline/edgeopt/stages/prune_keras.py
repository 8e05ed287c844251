"""Pruning of Keras models: channels or weights."""

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
from edgeopt.formats.keras.prune.selection import Choice, choose, remaining_channels
from edgeopt.model import Array, Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._keras import KerasStage

IMPORTANCE_SAMPLES = 512
"""Number of calibration samples from which channel importance is estimated."""
BATCH = 32


class PruneKeras(KerasStage):
    """Prune a Keras model: remove whole channels, or set weights to zero.

    ``channels`` makes the model physically smaller, which speeds it up on every runtime. ``weights`` and
    ``n_m`` keep all shapes: they reduce the compressed download, and the latency on hardware that skips
    zeros. The zeros are recorded in the file and preserved by fine-tuning, which introduces those of
    ``weights`` gradually.

    Channels coupled across layers (by Add, Concatenate, depthwise convolution ...) are removed together;
    channels that reach a layer unknown to edgeopt are kept, with a note.
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
        None, description="what to prune; inferred from the option that is set"
    )
    channels: float | None = Field(
        None, description="fraction of the channels to remove from every layer, below 1"
    )
    weights: float | None = Field(
        None, description="fraction of the weights of every layer to set to zero, below 1"
    )
    n_m: tuple[int, int] | None = Field(
        None, description="[n, m]: keep n of every m weights along the input channels, zero the rest"
    )
    round_to: int = Field(
        8, ge=1, description="channel counts stay multiples of this; a layer with no more channels keeps all"
    )
    importance: Literal["outputs", "weights"] = Field(
        "outputs",
        description="outputs: rank channels by the error in the layers that read them, which then "
        "compensate for it; weights: by the norm of the weights that produce them",
    )
    keep: tuple[str, ...] = Field((), description="layers not to prune, by name or pattern")
    layers: dict[str, float] = Field(
        {}, description="fraction by layer name or pattern, overriding the general one"
    )

    @model_validator(mode="after")
    def _check_scheme(self) -> Self:
        given = [name for name in ("channels", "weights", "n_m") if getattr(self, name) is not None]
        if len(given) != 1 or self.scheme not in (None, given[0]):
            raise ValueError("set exactly one of channels, weights and n_m")
        shares = {"channels": self.channels, "weights": self.weights, **self.layers}
        for name, share in shares.items():
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{name}: {share:g} is not a fraction from 0 to below 1 (1 removes all)")
        if (self.channels == 0 or self.weights == 0) and not self.layers:
            raise ValueError(f"{given[0]}: 0 removes nothing")
        if self.n_m is not None and not 0 < self.n_m[0] < self.n_m[1]:
            raise ValueError("n_m: keep n of every m weights, with 0 < n < m")
        return self

    def run(self, model: Model, context: Context) -> Model:
        """Prune one model.

        Raises:
            StageError: nothing can be removed, a pattern matches no layer, or a layer would be emptied.
        """
        network = keras_loading.load_keras(model.path, self.trust, self.code)
        kept = keras_archive.kept_in(model.path)
        dense: dict[str, keras_sparsity.Weights] = {}
        if self.channels is not None:
            network = self._remove_channels(network, self.channels, model.path.name, context)
        else:
            before = {k.name: k.values.copy() for k in keras_sparsity.kernels(network, model.path.name)}
            done = self._zero_weights(network, model.path.name, context)
            kept = kept | done
            if self.weights is not None:  # an n:m pattern trains better when applied at once
                dense = {name: before[name] for name in done.sparse}
        path = context.folder / "model.keras"
        keras_archive.save(network, path, kept, dense)
        inputs, outputs = keras_archive.specs(network, model.inputs)
        return Model(format="keras", path=path, inputs=inputs, outputs=outputs)

    def _remove_channels(self, network: Any, share: float, name: str, context: Context) -> Any:
        graph = graph_of(network, name)
        channels = Channels(graph)
        bundles = channels.bundles()
        counts = remaining_channels(
            bundles, share=share, round_to=self.round_to, keep=self.keep, layers=self.layers
        )
        # Only channels that are removed need an importance, so only their readers are measured.
        smaller_ones = [b for b, stay in zip(bundles, counts, strict=True) if stay < len(b.channels)]
        readers = self._readers(network, channels, smaller_ones, name, context)

        def importance(bundle: Bundle) -> NDArray[np.float64]:
            positions = keras_obs_pruning.removal_order(bundle, readers)
            return keras_remove_channels.importance(channels, bundle) if positions is None else positions

        choice = choose(bundles, counts, importance)
        if not len(choice.removed):
            raise StageError(
                f"no channel of {name} can be removed: {_reasons(choice, self.round_to)}",
                fix="remove a larger fraction, set a smaller 'round_to', or prune 'weights' instead",
            )
        context.progress(f"removing {len(choice.removed)} groups of channels")
        # Compensation comes first: it needs the readers' weights at their original shapes.
        keras_obs_pruning.compensate(readers, choice.removed)
        smaller = keras_remove_channels.without(network, channels, choice.removed, name)
        before, after = costs(network, graph), costs(smaller, graph_of(smaller, name))
        context.note(_savings(before, after))
        context.note("channels kept: " + "; ".join(_channel_counts(choice)))
        if unprunable := _unprunable(choice):
            context.note(f"channels kept because they reach layers that cannot be pruned: {unprunable}")
        return smaller

    def _readers(
        self, network: Any, channels: Channels, pruned: list[Bundle], name: str, context: Context
    ) -> list[keras_obs_pruning.Reader]:
        """The layers that read the channels, with statistics of their inputs on the calibration data."""
        if self.importance == "weights" or not pruned:
            return []
        if context.calibration is None:
            context.note("no calibration data: channels are ranked by the norm of their weights")
            return []
        context.progress("estimating channel importance")
        inputs, _ = keras_archive.specs(network, ())
        described = Model(format="keras", path=Path(name), inputs=inputs)
        samples = islice(context.calibration.inputs(described), IMPORTANCE_SAMPLES)
        return keras_obs_pruning.readers(network, channels, pruned, _batches(samples), name)

    def _zero_weights(self, network: Any, name: str, context: Context) -> Kept:
        kernels = keras_sparsity.chosen(keras_sparsity.kernels(network, name), self.keep)
        dense: list[str] = []
        if self.n_m is not None:
            kept, dense = keras_sparsity.prune_n_m(kernels, *self.n_m)
        else:
            kept = keras_sparsity.prune_by_magnitude(kernels, self.weights or 0.0, self.layers)
        zeros = sum(kernel.values.size * kept.sparse.get(kernel.name, 0.0) for kernel in kernels)
        total = int(network.count_params())
        context.note(
            f"{zeros / total:.0%} of {total:,} parameters are zero: the compressed download shrinks; file "
            "size and latency do not change on runtimes that do not skip zeros"
        )
        if dense:
            context.note(f"left dense, because m does not divide their input channels: {', '.join(dense)}")
        return kept


def _batches(samples: Iterator[tuple[Array, ...]]) -> Iterator[list[NDArray[np.float32]]]:
    while several := list(islice(samples, BATCH)):
        yield [np.concatenate(values).astype(np.float32) for values in zip(*several, strict=True)]


def _savings(before: Costs, after: Costs) -> str:
    return (
        f"MACs {before.macs:,} to {after.macs:,} ({after.macs / before.macs - 1:+.1%}), "
        f"parameters {before.parameters:,} to {after.parameters:,} "
        f"({after.parameters / before.parameters - 1:+.1%})"
    )


def _channel_counts(choice: Choice) -> list[str]:
    return [f"{'+'.join(paths)} {after} of {before}" for paths, before, after in choice.counts]


def _unprunable(choice: Choice) -> str:
    """Layers that prevent pruning, except the model's output."""
    layers = (
        f"{reason} ({'+'.join(paths)})" for paths, reason in choice.frozen if not reason.startswith("the ")
    )
    return ", ".join(dict.fromkeys(layers))


def _reasons(choice: Choice, round_to: int) -> str:
    reasons = [f"{'+'.join(paths)} reaches {reason}" for paths, reason in choice.frozen]
    rest = len(choice.counts) - len(choice.frozen)
    if rest:
        reasons.append(f"the other layers keep all channels when rounded to multiples of {round_to}")
    return "; ".join(reasons) or "it has no convolution or dense layer"
