"""Quantization-aware training: fake quantization of a PyTorch module without modifying it.

Jacob et al. 2018 (arXiv:1712.05877), section 3: weights and activations are rounded in the forward pass, and
the backward pass uses the straight-through estimator. The calls of torch functions are intercepted: every
function that will run in int8 (convolution, sum, pooling ...) receives fake-quantized arguments.
Normalization and activation functions do not, because they will be fused into the preceding layer.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

WEIGHTED = frozenset("conv1d conv2d conv3d linear conv_transpose1d conv_transpose2d conv_transpose3d".split())
READERS = WEIGHTED | frozenset(
    "add add_ __add__ __iadd__ __radd__ sub mul __mul__ cat concat concatenate mean avg_pool1d avg_pool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d matmul bmm softmax sigmoid tanh".split()
)
"""Functions that become separate operators in an int8 graph."""

Key: TypeAlias = str
"""Identifies a value of the forward pass: number of the call, and of the argument."""

EMA_RATE = 0.05
"""Rate of the exponential moving average of ranges."""

BEGIN_AT, FREEZE_AT = 0.3, 0.75
"""Fractions of the epochs after which fake quantization begins, and after which ranges are frozen."""


class FakeQuantizer:
    """Simulates int8 arithmetic in the forward pass, after some epochs of training in float.

    While active, batch norm uses its running statistics, as in the finished model: if rounding sets a whole
    channel to zero, its batch variance is zero as well.

    Args:
        epochs: number of epochs of the training; ranges are frozen towards the end.
        per_channel: use one weight scale per output channel instead of one per layer. With one per layer,
            weights are rounded as they will be after batch norm folding.
    """

    def __init__(self, epochs: int, *, per_channel: bool = True) -> None:
        self.epochs, self.per_channel = epochs, per_channel
        self.ranges: dict[Key, torch.Tensor] = {}
        self.norms: dict[int, tuple[Any, Any, float]] = {}
        self.active, self.frozen = True, False

    def begin(self, epoch: int) -> bool:
        """Prepare an epoch; return whether it is trained with fake quantization."""
        # Epoch 0 is the evaluation before training, which must measure the int8 model.
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
        """``module(*values)`` with fake quantization; ranges are updated in training mode."""
        import torch
        from torch.overrides import TorchFunctionMode
        from torch.utils import _pytree

        if not self.active:
            return module(*values)
        fake_quantizer, observing = self, module.training and not self.frozen

        class Mode(TorchFunctionMode):
            calls = 0
            # By id of a value: the value and the weight of the layer that produced it. Holding the value
            # prevents its id from being reused.
            producers: dict[int, tuple[Any, Any]]

            def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
                name = getattr(function, "__name__", "")
                if name == "batch_norm":
                    fake_quantizer._record_norm(self.producers, args, kwargs or {})
                weight = None
                if name in READERS:
                    # The number of the call identifies it, as forward() makes the same calls every time.
                    self.calls += 1
                    args, weight = fake_quantizer._quantize_arguments(f"{self.calls}", name, args, observing)
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
            self._quantize(leaf, f"output {index}", observing) if isinstance(leaf, torch.Tensor) else leaf
            for index, leaf in enumerate(leaves)
        ]
        return _pytree.tree_unflatten(rounded, structure)

    def state(self) -> "dict[str, torch.Tensor]":
        """State for ``restore``."""
        return dict(self.ranges)

    def restore(self, state: "dict[str, torch.Tensor]") -> None:
        """Resume from a ``state``."""
        self.ranges = dict(state)

    def _quantize_arguments(self, call: str, name: str, args: Any, observing: bool) -> tuple[Any, Any]:
        """The arguments of a call, fake-quantized, and the weight among them if it is a layer."""
        import torch

        arguments = list(args)
        weight = None
        if name in WEIGHTED:
            weight = arguments[1]
            arguments[1] = self._quantize_weight(weight, 1 if "transpose" in name else 0)
            arguments[0] = self._quantize(arguments[0], f"{call} 0", observing)
            return tuple(arguments), weight
        for position, value in enumerate(arguments):
            if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
                arguments[position] = [
                    self._quantize(part, f"{call} {position} {index}", observing)
                    for index, part in enumerate(value)
                ]
            elif isinstance(value, torch.Tensor):
                arguments[position] = self._quantize(value, f"{call} {position}", observing)
        return tuple(arguments), None

    def _quantize(self, value: "torch.Tensor", key: Key, observing: bool) -> "torch.Tensor":
        import torch

        # Vectors are biases and statistics, which int8 kernels keep in higher precision.
        if not value.is_floating_point() or value.ndim < 2:
            return value
        if observing or key not in self.ranges:
            with torch.no_grad():
                # Zero must be exactly representable, for padding and ReLU.
                current = torch.stack([value.min().clamp(max=0), value.max().clamp(min=0)])
                before = self.ranges.get(key)
                self.ranges[key] = current if before is None else before + EMA_RATE * (current - before)
        low, high = self.ranges[key].tolist()
        scale = max(high - low, 1e-8) / 255
        zero_point = min(127, max(-128, round(-128 - low / scale)))
        return torch.fake_quantize_per_tensor_affine(value, scale, zero_point, -128, 127)

    def _quantize_weight(self, weight: "torch.Tensor", axis: int) -> "torch.Tensor":
        import torch

        with torch.no_grad():
            others = [a for a in range(weight.ndim) if a != axis]
            widest = weight.abs().amax(dim=others).clamp_min(1e-8)
        if self.per_channel:
            zeros = torch.zeros(len(widest), dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(weight, widest / 127, zeros, axis, -127, 127)
        # One scale for all channels depends on the factors that batch norm folding will multiply them by:
        # the weight is folded, quantized and unfolded again.
        factor = torch.ones_like(widest)
        if id(weight) in self.norms:
            gain, variance, epsilon = self.norms[id(weight)]
            with torch.no_grad():
                folding = torch.rsqrt(variance + epsilon) * (1.0 if gain is None else gain)
                factor = torch.where(folding.abs() < 1e-8, torch.ones_like(folding), folding)
        shape = [1] * weight.ndim
        shape[axis] = -1
        scale = float((widest * factor.abs()).max()) / 127
        folded = torch.fake_quantize_per_tensor_affine(weight * factor.view(shape), scale, 0, -127, 127)
        return folded / factor.view(shape)

    def _record_norm(self, producers: "dict[int, tuple[Any, Any]]", args: Any, kwargs: Any) -> None:
        """Record the weight that a batch norm will be folded into."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        value, weight = producers.get(id(arguments["input"]), (None, None))
        # Only the direct output of a layer: anything in between prevents folding.
        if value is arguments["input"] and arguments.get("running_var") is not None:
            self.norms[id(weight)] = (
                arguments.get("weight"),
                arguments["running_var"],
                float(arguments.get("eps", 1e-5)),
            )
