"""Pruning of PyTorch modules: whole channels, single weights, or n:m sparsity."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import matching
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.prune import channels as torch_channels
from edgeopt.formats.torch.prune import counting as torch_counting
from edgeopt.formats.torch.prune import importance as torch_importance
from edgeopt.formats.torch.prune import masks as torch_masks
from edgeopt.formats.torch.prune import sparsity as torch_sparsity
from edgeopt.formats.torch.prune.channels import Group
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch

Share = Annotated[float, Field(gt=0, lt=1)]

IMPORTANCE_SAMPLES = 512
"""Number of calibration samples from which channel importance is estimated."""

BATCH = 32


class PruneTorch(Stage):
    """Remove the least important channels or weights.

    ``channels`` and ``macs`` make the network physically smaller; ``weights`` and ``n_m`` only set weights
    to zero.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    produces: ClassVar[str] = "torch"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {
        "prune": frozenset({"channels", "macs", "weights", "n_m"})
    }
    needs_calibration: ClassVar[bool] = True
    needs_finetuning: ClassVar[bool] = True
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors", "torch-pruning")
    extra: ClassVar[str | None] = "torch"

    scheme: Literal["channels", "macs", "weights", "n_m"] | None = Field(
        None, description="what to prune; inferred from the other options"
    )
    channels: Share | None = Field(None, description="fraction of the channels to remove from each layer")
    macs: Share | None = Field(
        None, description="fraction of MACs to remove, in the layers where it costs least"
    )
    weights: Share | None = Field(None, description="fraction of the weights to set to zero")
    n_m: tuple[int, int] | None = Field(
        None, description="[n, m]: keep n of every m weights along the input channels"
    )
    layers: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        {},
        description="fraction of channels or weights by layer name or pattern, overriding the general one",
    )
    keep: tuple[str, ...] = Field((), description="layers not to prune, by name or pattern")
    round_to: int = Field(
        8, ge=1, description="channel counts stay multiples of this, which suits SIMD kernels"
    )
    importance: Literal["outputs", "weights"] = Field(
        "outputs", description="rank channels by their effect on the outputs, or by their weights' norm"
    )
    scope: Literal["layer", "global"] = Field(
        "layer",
        description="for weights: the same fraction of every layer, or the smallest of all layers",
    )

    @model_validator(mode="after")
    def _check_scheme(self) -> Self:
        if self.channels is not None and self.macs is not None:
            raise ValueError("channels and macs both set how many channels to remove: give only one")
        if self.weights is not None and self.n_m is not None:
            raise ValueError("weights and n_m both set which weights are zero: give only one")
        amounts = (self.channels, self.macs, self.weights, self.n_m)
        if all(value is None for value in amounts) and not self.layers:
            raise ValueError("set one of channels, macs, weights and n_m")
        if self._removes_channels and (self.weights or self.n_m) and self.layers:
            raise ValueError(
                "layers is ambiguous with both channels and weights: use two entries under 'stages'"
            )
        if self.n_m is not None and not 0 < self.n_m[0] < self.n_m[1]:
            raise ValueError("n_m is [n, m] with 0 < n < m, such as [2, 4]")
        return self

    def key_parts(self) -> dict[str, str]:
        """Separate from cached results of the time when a pattern also matched parts of a name."""
        return {"patterns": "whole names"} if self.layers or self.keep else {}

    def run(self, model: Model, context: Context) -> Model:
        """Prune one module.

        Raises:
            StageError: nothing can be pruned, a layer would lose all channels, or a pattern matches no layer.
        """
        module = torch_module.build(model)
        before = torch_counting.count(module, model.inputs)
        changed: dict[str, Any] = {}
        if self._removes_channels:
            changed["resized"] = torch_module.about(model.path).get("resized", {}) | self._remove_channels(
                module, model, context
            )
            after = torch_counting.count(module, model.inputs)
            context.note(
                f"pruned: {after.total:,} of {before.total:,} MACs remain "
                f"({after.total / before.total:.0%}), {after.parameters:,} of {before.parameters:,} "
                f"parameters ({after.parameters / before.parameters:.0%})"
            )
        dense: dict[str, Any] = {}
        if self.weights is not None or self.n_m is not None or not self._removes_channels:
            dense = {name: value.detach().clone() for name, value in module.named_parameters()}
            changed["keeps"] = torch_module.about(model.path).get("keeps", {}) | self._zero_weights(
                module, context
            )
        result = torch_module.save(module, context.folder / "model", model, changed=changed)
        # Fine-tuning starts gradual pruning (Zhu and Gupta 2017) from the dense weights; an n:m pattern
        # trains better when applied at once.
        gradual = {
            name: dense[name] for name, kept in changed.get("keeps", {}).items() if kept["kind"] == "zeros"
        }
        if gradual:
            from safetensors.torch import save_file

            save_file(gradual, result.path / torch_masks.DENSE)
        return result

    @property
    def _removes_channels(self) -> bool:
        return self.channels is not None or self.macs is not None

    def _remove_channels(
        self, module: "torch.nn.Module", model: Model, context: Context
    ) -> torch_module.Resized:
        context.progress("finding prunable channels")
        groups, fixed = torch_channels.groups(module, model.inputs, self.round_to)
        fixed_layers = [
            f"{layer.name} ({layer.reason})" for layer in fixed if layer.reason != torch_channels.OUTPUT
        ]
        if not groups:
            raise StageError(
                "no channel of this model can be removed: "
                + ("; ".join(fixed_layers) or "it has no inner layer"),
                fix="shortcuts or shapes in forward() depend on the channel count; prune weights instead",
            )
        if fixed_layers:
            reasons = {layer.reason for layer in fixed if layer.reason != torch_channels.OUTPUT}
            names = [layer.name for layer in fixed if layer.reason != torch_channels.OUTPUT]
            context.note(
                f"channels of {', '.join(names)} kept: the network does not run without some of them "
                f"({'; '.join(sorted(reasons))})"
            )
        importance = (
            torch_importance.by_outputs(module, groups, _batches(model, context))
            if self.importance == "outputs"
            else torch_importance.by_weights(module, groups)
        )
        kept = self._channel_counts(module, model, groups, importance)
        if all(kept[group.name] == group.channels for group in groups):
            raise StageError(
                f"nothing to remove: rounded to multiples of {self.round_to}, every layer keeps its channels",
                fix="remove a larger fraction, or set a smaller round_to",
            )
        # A stable sort: equal importance selects the same channels on every machine.
        chosen = {
            group.name: np.argsort(importance[group.name], kind="stable")[
                : group.channels - kept[group.name]
            ].tolist()
            for group in groups
        }
        context.note(
            "channels: "
            + ", ".join(
                f"{g.name} {g.channels} to {kept[g.name]}" for g in groups if kept[g.name] < g.channels
            )
        )
        return torch_channels.remove(module, model.inputs, chosen)

    def _channel_counts(
        self,
        module: "torch.nn.Module",
        model: Model,
        groups: list[Group],
        importance: torch_importance.Importance,
    ) -> dict[str, int]:
        """Number of channels to keep in each group."""
        names = list(torch_counting.weighted(module))
        excluded = matching(self.keep, names, "keep")
        overrides = matching(self.layers, names, "layers")
        kept = {group.name: group.channels for group in groups}
        open_groups = []
        for group in groups:
            if excluded.keys() & group.producers.keys():
                continue
            # A group shares its channels, so the first producer with a pattern of its own decides for all.
            share = next(
                (self.layers[overrides[name]] for name in group.producers if name in overrides), self.channels
            )
            if share is None:
                open_groups.append(group)
            else:
                kept[group.name] = torch_importance.kept_channels(group.channels, share, self.round_to)
        if self.macs is None:
            return kept
        counts = torch_counting.count(module, model.inputs)
        return torch_importance.meet_mac_target(
            groups,
            open_groups,
            kept,
            importance,
            counts,
            torch_counting.weighted(module),
            target=(1 - self.macs) * counts.total,
            round_to=self.round_to,
        )

    def _zero_weights(self, module: "torch.nn.Module", context: Context) -> torch_masks.Keeps:
        layers = torch_counting.weighted(module)
        names = list(layers)
        excluded = matching(self.keep, names, "keep")
        names = [name for name in names if name not in excluded]
        if self.n_m is not None:
            kept, dense = torch_sparsity.prune_n_m(module, names, *self.n_m)
            if not kept:
                raise StageError(
                    f"no layer has a multiple of {self.n_m[1]} input channels",
                    fix="choose a smaller m, or prune weights instead",
                )
            if dense:
                context.note(
                    f"{', '.join(dense)} left dense: {self.n_m[1]} does not divide their input channels"
                )
        else:
            overrides = matching(self.layers, list(layers), "layers")
            general = self.weights or 0.0
            shares = {name: self.layers[overrides[name]] if name in overrides else general for name in names}
            kept = torch_sparsity.prune_by_magnitude(module, shares, self.scope)
        total = sum(parameter.numel() for parameter in module.parameters())
        zeros = sum(int((module.get_parameter(name) == 0).sum()) for name in kept)
        context.note(
            f"{zeros:,} of {total:,} parameters are zero ({zeros / total:.0%}): the compressed download "
            "shrinks; file size and latency do not change on runtimes that do not skip zeros"
        )
        return kept


def _batches(model: Model, context: Context) -> "Iterator[tuple[torch.Tensor, ...]]":
    """Batches of the first calibration samples."""
    import torch

    if context.calibration is None:
        raise StageError("pruning needs calibration data", fix="add 'data.calibration' to the recipe")
    rows: list[tuple[Any, ...]] = []
    for number, values in enumerate(context.calibration.inputs(model)):
        if number == IMPORTANCE_SAMPLES:
            break
        rows.append(values)
        if len(rows) == BATCH:
            yield tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
            rows = []
    if rows:
        yield tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
