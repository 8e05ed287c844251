"""Second moments of a layer's inputs over all samples and positions: the error measure for its rounding.

The squared error of a layer's output is a quadratic form of its weights. Its matrix is accumulated once, in
memory independent of the number of samples; afterwards the samples are not needed any more.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.graph.layers import Layer

if TYPE_CHECKING:
    import torch

    from edgeopt.formats.torch.lab.layer_by_layer import LayerSamples

WIDEST = 4608
"""Largest number of weights per output for which the full matrix is kept; 85 MB as float32."""

ROWS = 1024
"""Number of sampled input rows that replace a larger matrix."""


class Moments(NamedTuple):
    """Moments of the inputs x ``[features]`` and outputs y ``[outputs]`` of each group, without bias."""

    matrix: "torch.Tensor | None"
    """E[x x^T], ``[groups, features, features]``; None if ``rows`` replaces it."""
    rows: "torch.Tensor | None"
    """``[groups, ROWS, features]``, such that rows^T rows approximates E[x x^T]."""
    cross: "torch.Tensor"
    """E[y x^T], ``[groups, outputs, features]``."""
    power: "torch.Tensor"
    """E[y^2], ``[groups, outputs]``."""
    mean_input: "torch.Tensor"
    """E[x], ``[groups, features, 1]``; zero if the moments are not centred."""
    mean_output: "torch.Tensor"
    """E[y], ``[groups, outputs]``; zero if the moments are not centred."""

    def times(self, weight: "torch.Tensor") -> "torch.Tensor":
        """``weight E[x x^T]`` for weights ``[groups, outputs, features]``."""
        if self.matrix is not None:
            return weight @ self.matrix
        assert self.rows is not None
        return (weight @ self.rows.transpose(1, 2)) @ self.rows

    def errors(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Mean squared error of each output with these weights: ``[groups, outputs]``."""
        # E[(w x - y)^2] = w E[x x^T] w^T - 2 w E[x y] + E[y^2]; float rounding can make it negative.
        errors: torch.Tensor = ((self.times(weight) - 2 * self.cross) * weight).sum(2) + self.power
        return errors.clamp_min(0)

    def bias_correction(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Shift of the mean output with these weights, to be added to the bias: ``[outputs]``."""
        quantized_mean = (weight @ self.mean_input)[..., 0]
        return (self.mean_output - quantized_mean).flatten()


def gather(
    layer: Layer, samples: "LayerSamples", weight: "torch.Tensor", bias: "torch.Tensor", centred: bool
) -> Moments:
    """Accumulate the moments of a layer.

    Args:
        layer: the layer.
        samples: its inputs in the quantized model, and its outputs in the float model.
        weight: the float weight; only its shape is used.
        bias: the float bias, which is subtracted from the outputs.
        centred: subtract the means, because a corrected bias will compensate for their error.
    """
    import torch

    wide = weight[0].numel() > WIDEST
    total = 0
    matrix: Any = 0.0
    cross: Any = 0.0
    mean: Any = 0.0
    power: Any = 0.0
    mean_output: Any = 0.0
    sampled: list[torch.Tensor] = []
    # Products in float32 for speed, sums in float64: thousands of positions would lose the small terms.
    for x, y in _rows(layer, samples, weight, bias, wide):
        total += x.shape[1]
        matrix = 0.0 if wide else matrix + (x.transpose(1, 2) @ x).double()
        cross = cross + (y.transpose(1, 2) @ x).double()
        mean = mean + x.double().sum(1)
        mean_output = mean_output + y.double().sum(1)
        power = power + y.double().square().sum(1)
        if wide:
            sampled.append(x)
    matrix, cross, mean, mean_output, power = (
        value / total for value in (matrix, cross, mean, mean_output, power)
    )
    rows = torch.cat(sampled, 1) / total**0.5 if wide else None
    if centred:
        # Cov(x, y) = E[x y] - E[x] E[y]
        if rows is None:
            matrix = matrix - mean[:, :, None] * mean[:, None, :]
        else:
            rows = rows - (mean / total**0.5)[:, None, :].float()
        cross = cross - mean_output[:, :, None] * mean[:, None, :]
        power = power - mean_output.square()
    else:
        mean, mean_output = torch.zeros_like(mean), torch.zeros_like(mean_output)
    return Moments(
        matrix=None if wide else matrix.float(),
        rows=rows,
        cross=cross.float(),
        power=power.float(),
        mean_input=mean.float()[:, :, None],
        mean_output=mean_output.float(),
    )


def _rows(
    layer: Layer, samples: "LayerSamples", weight: "torch.Tensor", bias: "torch.Tensor", few: bool
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Inputs ``[groups, positions, features]`` and outputs ``[groups, positions, outputs]`` per sample."""
    import torch

    each = -(-ROWS // len(samples.inputs))
    generator = torch.Generator().manual_seed(0)
    for x, output in zip(samples.inputs, samples.outputs, strict=True):
        inputs = layer.patches(x, weight)
        channels = output.movedim(layer.axis, -1).reshape(-1, layer.groups, len(bias) // layer.groups)
        outputs = (channels - bias.reshape(layer.groups, -1)).transpose(0, 1)
        if few and inputs.shape[1] > each:
            places = torch.randperm(inputs.shape[1], generator=generator)[:each]
            inputs, outputs = inputs[:, places], outputs[:, places]
        yield inputs, outputs
