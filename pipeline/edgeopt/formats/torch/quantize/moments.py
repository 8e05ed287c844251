"""What a layer's rounding is judged by: second moments of its inputs, over all samples and positions.

The squared error of a layer's output is a quadratic form of its weights. Its matrix is gathered once, in
memory that does not depend on the number of samples, and then no sample is needed any more.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.layers import Layer

if TYPE_CHECKING:
    import torch

    from edgeopt.formats.torch.lab.layer_by_layer import Seen

WIDEST = 4608
"""Weights per output up to which the matrix of second moments is held; 85 MB as float32."""

ROWS = 1024
"""Input rows that stand for all of them where the matrix would be larger."""


class Moments(NamedTuple):
    """Of inputs x ``[features]`` of a group, and outputs y ``[outputs of the group]`` without bias."""

    matrix: "torch.Tensor | None"
    """E[x x^T], ``[groups, features, features]``; none where ``rows`` stands for it."""
    rows: "torch.Tensor | None"
    """``[groups, ROWS, features]``, such that rows^T rows is E[x x^T]."""
    cross: "torch.Tensor"
    """E[y x^T], ``[groups, outputs, features]``."""
    power: "torch.Tensor"
    """E[y^2], ``[groups, outputs]``."""
    shift: "torch.Tensor"
    """E[x], ``[groups, features, 1]``; zero where the means are not taken out."""
    wanted: "torch.Tensor"
    """E[y], ``[groups, outputs]``; zero likewise."""

    def times(self, weight: "torch.Tensor") -> "torch.Tensor":
        """``weight E[x x^T]`` for weights ``[groups, outputs, features]``."""
        if self.matrix is not None:
            return weight @ self.matrix
        assert self.rows is not None
        return (weight @ self.rows.transpose(1, 2)) @ self.rows

    def errors(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Mean squared error of each output with these weights: ``[groups, outputs]``."""
        found: torch.Tensor = ((self.times(weight) - 2 * self.cross) * weight).sum(2) + self.power
        return found.clamp_min(0)

    def missing(self, weight: "torch.Tensor") -> "torch.Tensor":
        """What the bias has to make up for with these weights: ``[outputs]``."""
        made = (weight @ self.shift)[..., 0]
        return (self.wanted - made).flatten()


def gather(
    layer: Layer, seen: "Seen", weight: "torch.Tensor", bias: "torch.Tensor", centred: bool
) -> Moments:
    """Moments of a layer.

    Args:
        layer: the layer.
        seen: its inputs as they will be, and its outputs as they were.
        weight: for its shape.
        bias: what is part of the outputs and not of the product.
        centred: take the means out, because the bias will make up for them.
    """
    import torch

    wide = weight[0].numel() > WIDEST
    total = 0
    matrix: Any = 0.0
    cross: Any = 0.0
    mean: Any = 0.0
    power: Any = 0.0
    wanted: Any = 0.0
    kept: list[torch.Tensor] = []
    for x, y in _rows(layer, seen, weight, bias, wide):
        total += x.shape[1]
        matrix = 0.0 if wide else matrix + (x.transpose(1, 2) @ x).double()
        cross = cross + (y.transpose(1, 2) @ x).double()
        mean = mean + x.double().sum(1)
        wanted = wanted + y.double().sum(1)
        power = power + y.double().square().sum(1)
        if wide:
            kept.append(x)
    matrix, cross, mean, wanted, power = (value / total for value in (matrix, cross, mean, wanted, power))
    rows = torch.cat(kept, 1) / total**0.5 if wide else None
    if centred:
        if rows is None:
            matrix = matrix - mean[:, :, None] * mean[:, None, :]
        else:
            rows = rows - (mean / total**0.5)[:, None, :].float()
        cross = cross - wanted[:, :, None] * mean[:, None, :]
        power = power - wanted.square()
    else:
        mean, wanted = torch.zeros_like(mean), torch.zeros_like(wanted)
    return Moments(
        matrix=None if wide else matrix.float(),
        rows=rows,
        cross=cross.float(),
        power=power.float(),
        shift=mean.float()[:, :, None],
        wanted=wanted.float(),
    )


def _rows(
    layer: Layer, seen: "Seen", weight: "torch.Tensor", bias: "torch.Tensor", few: bool
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Per sample: inputs ``[groups, positions, features]``, outputs ``[groups, positions, outputs]``."""
    import torch

    each = -(-ROWS // len(seen.inputs))
    generator = torch.Generator().manual_seed(0)
    for x, output in zip(seen.inputs, seen.outputs, strict=True):
        inputs = layer.patches(x, weight)
        channels = output.movedim(layer.axis, -1).reshape(-1, layer.groups, len(bias) // layer.groups)
        outputs = (channels - bias.reshape(layer.groups, -1)).transpose(0, 1)
        if few and inputs.shape[1] > each:
            places = torch.randperm(inputs.shape[1], generator=generator)[:each]
            inputs, outputs = inputs[:, places], outputs[:, places]
        yield inputs, outputs
