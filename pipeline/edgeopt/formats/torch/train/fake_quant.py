"""A PyTorch module computing as int8 will, while it is trained: quantization-aware training.

Jacob et al. 2018 (arXiv:1712.05877), section 3: weights and activations are rounded in the forward pass, and
gradients pass as if they were not. A module is not changed for it. Its functions are intercepted instead:
whatever computes in int8 later (convolution, sum, pooling ...) is handed rounded values. Normalization
and activation functions are not: they will be part of the layer before them.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

WEIGHTED = frozenset("conv1d conv2d conv3d linear conv_transpose1d conv_transpose2d conv_transpose3d".split())
READERS = WEIGHTED | frozenset(
    "add add_ __add__ __iadd__ __radd__ sub mul __mul__ cat concat concatenate mean avg_pool1d avg_pool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d matmul bmm softmax sigmoid tanh".split()
)
"""Functions that become operators of their own in an int8 graph."""

Key: TypeAlias = str
"""Which value of the forward pass: number of the call, and of the argument."""

PACE = 0.05
"""How fast ranges follow what is seen."""

BEGIN_AT, FREEZE_AT = 0.3, 0.75
"""Shares of the epochs after which rounding begins, and ranges stay as they are."""


class Rounder:
    """Rounds to int8 what a module computes, once it has been trained for a while without.

    While it rounds, batch norm keeps its statistics, as it does in the finished model: where rounding leaves
    nothing of a channel, a batch has no variance to divide by.

    Args:
        epochs: how long training will last; ranges are frozen towards the end.
        per_channel: weights have one scale per output channel, or one per layer. In the latter case they
            are rounded as they will be once batch norm is folded into them.
    """

    def __init__(self, epochs: int, *, per_channel: bool = True) -> None:
        self.epochs, self.per_channel = epochs, per_channel
        self.ranges: dict[Key, torch.Tensor] = {}
        self.norms: dict[int, tuple[Any, Any, float]] = {}
        self.active, self.frozen = True, False

    def begin(self, epoch: int) -> bool:
        """Prepare for an epoch; whether it is trained in int8 arithmetic."""
        self.active = epoch == 0 or epoch > int(BEGIN_AT * self.epochs)
        self.frozen = epoch > max(1, FREEZE_AT * self.epochs)
        return self.active

    def train(self, module: "torch.nn.Module") -> None:
        """Set a module to training mode."""
        import torch

        module.train()
        for layer in module.modules() if self.active else ():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def compute(self, module: "torch.nn.Module", values: list[Any]) -> Any:
        """``module(*values)`` in int8 arithmetic; ranges are learned while the module trains."""
        import torch
        from torch.overrides import TorchFunctionMode
        from torch.utils import _pytree

        if not self.active:
            return module(*values)
        rounder, learning = self, module.training and not self.frozen

        class Mode(TorchFunctionMode):
            calls = 0
            producers: dict[int, tuple[Any, Any]]  # of a value: the value itself, the weight behind it

            def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
                name = getattr(function, "__name__", "")
                if name == "batch_norm":
                    rounder._meet_norm(self.producers, args, kwargs or {})
                weight = None
                if name in READERS:
                    self.calls += 1
                    args, weight = rounder._rounded(f"{self.calls}", name, args, learning)
                result = function(*args, **(kwargs or {}))
                if weight is not None:
                    self.producers[id(result)] = result, weight
                return result

        mode = Mode()
        mode.producers = {}
        with mode:
            outputs = module(*values)
        leaves, structure = _pytree.tree_flatten(outputs)
        rounded = [
            self._round(leaf, f"output {index}", learning) if isinstance(leaf, torch.Tensor) else leaf
            for index, leaf in enumerate(leaves)
        ]
        return _pytree.tree_unflatten(rounded, structure)

    def state(self) -> "dict[str, torch.Tensor]":
        """What ``restore`` needs."""
        return dict(self.ranges)

    def restore(self, state: "dict[str, torch.Tensor]") -> None:
        """Take up an earlier ``state``."""
        self.ranges = dict(state)

    def _rounded(self, call: str, name: str, args: Any, learning: bool) -> tuple[Any, Any]:
        """Arguments with their values rounded, and the weight among them."""
        import torch

        given = list(args)
        weight = None
        if name in WEIGHTED:
            weight = given[1]
            given[1] = self._round_weight(weight, 1 if "transpose" in name else 0)
            given[0] = self._round(given[0], f"{call} 0", learning)
            return tuple(given), weight
        for position, value in enumerate(given):
            if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
                given[position] = [
                    self._round(part, f"{call} {position} {index}", learning)
                    for index, part in enumerate(value)
                ]
            elif isinstance(value, torch.Tensor):
                given[position] = self._round(value, f"{call} {position}", learning)
        return tuple(given), None

    def _round(self, value: "torch.Tensor", key: Key, learning: bool) -> "torch.Tensor":
        import torch

        if not value.is_floating_point() or value.ndim < 2:
            return value
        if learning or key not in self.ranges:
            with torch.no_grad():
                # Zero is always a value of its own: paddings and activations need it.
                seen = torch.stack([value.min().clamp(max=0), value.max().clamp(min=0)])
                before = self.ranges.get(key)
                self.ranges[key] = seen if before is None else before + PACE * (seen - before)
        low, high = self.ranges[key].tolist()
        scale = max(high - low, 1e-8) / 255
        zero_point = min(127, max(-128, round(-128 - low / scale)))
        return torch.fake_quantize_per_tensor_affine(value, scale, zero_point, -128, 127)

    def _round_weight(self, weight: "torch.Tensor", axis: int) -> "torch.Tensor":
        import torch

        with torch.no_grad():
            others = [a for a in range(weight.ndim) if a != axis]
            widest = weight.abs().amax(dim=others).clamp_min(1e-8)
        if self.per_channel:
            zeros = torch.zeros(len(widest), dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(weight, widest / 127, zeros, axis, -127, 127)
        factor = torch.ones_like(widest)
        if id(weight) in self.norms:
            gain, variance, epsilon = self.norms[id(weight)]
            with torch.no_grad():
                found = torch.rsqrt(variance + epsilon) * (1.0 if gain is None else gain)
                factor = torch.where(found.abs() < 1e-8, torch.ones_like(found), found)
        shape = [1] * weight.ndim
        shape[axis] = -1
        scale = float((widest * factor.abs()).max()) / 127
        folded = torch.fake_quantize_per_tensor_affine(weight * factor.view(shape), scale, 0, -127, 127)
        return folded / factor.view(shape)

    def _meet_norm(self, producers: "dict[int, tuple[Any, Any]]", args: Any, kwargs: Any) -> None:
        """Learn which weight a batch norm will be folded into."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        value, weight = producers.get(id(given["input"]), (None, None))
        if value is given["input"] and given.get("running_var") is not None:
            self.norms[id(weight)] = given.get("weight"), given["running_var"], float(given.get("eps", 1e-5))
