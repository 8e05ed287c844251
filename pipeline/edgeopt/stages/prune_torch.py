"""Pruning a PyTorch module: whole channels, single weights, or n of every m."""

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

EVIDENCE = 512
"""Calibration samples by which channels are weighed."""

BATCH = 32


class PruneTorch(Stage):
    """Remove what matters least. ``channels`` and ``macs`` make the network physically smaller; ``weights``
    and ``n_m`` only set weights to zero."""

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
        None, description="told by the other options"
    )
    channels: Share | None = Field(None, description="share of the channels to remove from each layer")
    macs: Share | None = Field(
        None, description="share of the multiplications to save, in whichever layers it costs least"
    )
    weights: Share | None = Field(None, description="share of the weights to set to zero")
    n_m: tuple[int, int] | None = Field(
        None, description="[n, m]: of every m weights along the input channels, n stay"
    )
    layers: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        {}, description="another share (of channels or weights) for layers that match a pattern"
    )
    keep: tuple[str, ...] = Field((), description="patterns of layers to leave alone")
    round_to: int = Field(8, ge=1, description="channels are left in multiples of this, which runtimes like")
    importance: Literal["outputs", "weights"] = Field(
        "outputs", description="weigh channels by their effect on the outputs, or by their weights' norm"
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="for weights: the same share of every layer, or the smallest of all layers"
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.channels is not None and self.macs is not None:
            raise ValueError("channels and macs both say how many channels to remove: give one")
        if self.weights is not None and self.n_m is not None:
            raise ValueError("weights and n_m both say which weights are zero: give one")
        asked = (self.channels, self.macs, self.weights, self.n_m)
        if all(value is None for value in asked) and not self.layers:
            raise ValueError("say how much: channels, macs, weights or n_m")
        if self._physical and (self.weights or self.n_m) and self.layers:
            raise ValueError("layers would mean both channels and weights: use two entries under 'stages'")
        if self.n_m is not None and not 0 < self.n_m[0] < self.n_m[1]:
            raise ValueError("n_m is [n, m] with 0 < n < m, such as [2, 4]")
        return self

    def key_parts(self) -> dict[str, str]:
        """Patterns once meant every layer in whose name they occur: results of that time are others."""
        return {"patterns": "whole names"} if self.layers or self.keep else {}

    def run(self, model: Model, context: Context) -> Model:
        """Prune one module.

        Raises:
            StageError: nothing can be pruned, a layer would be emptied, or a pattern matches no layer.
        """
        module = torch_module.build(model)
        before = torch_counting.count(module, model.inputs)
        changed: dict[str, Any] = {}
        if self._physical:
            changed["resized"] = torch_module.about(model.path).get("resized", {}) | self._remove(
                module, model, context
            )
            after = torch_counting.count(module, model.inputs)
            context.note(
                f"pruned: {after.total:,} of {before.total:,} multiplications "
                f"({after.total / before.total:.0%}), {after.parameters:,} of {before.parameters:,} "
                f"parameters ({after.parameters / before.parameters:.0%})"
            )
        dense: dict[str, Any] = {}
        if self.weights is not None or self.n_m is not None or not self._physical:
            dense = {name: value.detach().clone() for name, value in module.named_parameters()}
            changed["keeps"] = torch_module.about(model.path).get("keeps", {}) | self._thin(module, context)
        result = torch_module.save(module, context.folder / "model", model, changed=changed)
        gradual = {
            name: dense[name] for name, kept in changed.get("keeps", {}).items() if kept["kind"] == "zeros"
        }
        if gradual:
            from safetensors.torch import save_file

            save_file(gradual, result.path / torch_masks.DENSE)
        return result

    @property
    def _physical(self) -> bool:
        return self.channels is not None or self.macs is not None

    def _remove(self, module: "torch.nn.Module", model: Model, context: Context) -> torch_module.Resized:
        context.progress("finding channels that can be removed")
        groups, fixed = torch_channels.groups(module, model.inputs, self.round_to)
        told = [f"{layer.name} ({layer.reason})" for layer in fixed if layer.reason != torch_channels.OUTPUT]
        if not groups:
            raise StageError(
                "no layer of this model can lose channels: " + ("; ".join(told) or "it has no inner layer"),
                fix="shortcuts or shapes in forward() count on the number of channels; prune weights instead",
            )
        if told:
            reasons = {layer.reason for layer in fixed if layer.reason != torch_channels.OUTPUT}
            names = [layer.name for layer in fixed if layer.reason != torch_channels.OUTPUT]
            context.note(
                f"channels of {', '.join(names)} stay: the network does not run without some of them "
                f"({'; '.join(sorted(reasons))})"
            )
        importance = (
            torch_importance.by_outputs(module, groups, _batches(model, context))
            if self.importance == "outputs"
            else torch_importance.by_weights(module, groups)
        )
        kept = self._kept(module, model, groups, importance)
        if all(kept[group.name] == group.channels for group in groups):
            raise StageError(
                f"nothing to remove: rounded to multiples of {self.round_to}, every layer keeps its channels",
                fix="remove a larger share, or set a smaller round_to",
            )
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

    def _kept(
        self,
        module: "torch.nn.Module",
        model: Model,
        groups: list[Group],
        importance: torch_importance.Importance,
    ) -> dict[str, int]:
        """How many channels of each group stay."""
        names = list(torch_counting.weighted(module))
        spared = matching(self.keep, names, "keep")
        own = matching(self.layers, names, "layers")
        kept = {group.name: group.channels for group in groups}
        open_groups = []
        for group in groups:
            if spared.keys() & group.makers.keys():
                continue
            share = next((self.layers[own[name]] for name in group.makers if name in own), self.channels)
            if share is None:
                open_groups.append(group)
            else:
                kept[group.name] = torch_importance.kept_channels(group.channels, share, self.round_to)
        if self.macs is None:
            return kept
        counts = torch_counting.count(module, model.inputs)
        return torch_importance.spend(
            groups,
            open_groups,
            kept,
            importance,
            counts,
            torch_counting.weighted(module),
            target=(1 - self.macs) * counts.total,
            round_to=self.round_to,
        )

    def _thin(self, module: "torch.nn.Module", context: Context) -> torch_masks.Keeps:
        layers = torch_counting.weighted(module)
        names = list(layers)
        spared = matching(self.keep, names, "keep")
        names = [name for name in names if name not in spared]
        if self.n_m is not None:
            kept, dense = torch_sparsity.thin_in_blocks(module, names, *self.n_m)
            if not kept:
                raise StageError(
                    f"no layer has input channels in multiples of {self.n_m[1]}",
                    fix="choose a smaller m, or prune weights instead",
                )
            if dense:
                context.note(
                    f"{', '.join(dense)} stay dense: their input channels are no multiple of {self.n_m[1]}"
                )
        else:
            own = matching(self.layers, list(layers), "layers")
            general = self.weights or 0.0
            shares = {name: self.layers[own[name]] if name in own else general for name in names}
            kept = torch_sparsity.thin(module, shares, self.scope)
        total = sum(parameter.numel() for parameter in module.parameters())
        zeros = sum(int((module.get_parameter(name) == 0).sum()) for name in kept)
        context.note(
            f"{zeros:,} of {total:,} parameters are zero ({zeros / total:.0%}): this makes the compressed "
            "download smaller, and neither the file nor the inference on common runtimes"
        )
        return kept


def _batches(model: Model, context: Context) -> "Iterator[tuple[torch.Tensor, ...]]":
    """The first calibration samples, as tensors."""
    import torch

    if context.calibration is None:
        raise StageError("pruning needs calibration data", fix="give 'data.calibration' in the recipe")
    rows: list[tuple[Any, ...]] = []
    for number, values in enumerate(context.calibration.inputs(model)):
        if number == EVIDENCE:
            break
        rows.append(values)
        if len(rows) == BATCH:
            yield tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
            rows = []
    if rows:
        yield tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
