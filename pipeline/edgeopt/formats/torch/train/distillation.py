"""Distillation between PyTorch modules: single training steps, with the complete state in files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.output_scales import ScaledOutputs
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.prune.masks import Keeper
from edgeopt.formats.torch.train.fake_quant import FakeQuantizer

if TYPE_CHECKING:
    import torch

Outputs: TypeAlias = NDArray[np.float32]

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
"""Weight decay of weights only: biases and the scales of normalizations need not be small."""

MAX_GRADIENT_NORM = 5.0
"""Gradient norm to clip to: the first gradients of a pruned model are large, and would make it diverge."""


class Hints:
    """Feature distillation on intermediate outputs that have the same shape in student and teacher.

    The outputs of blocks, the modules with submodules, are compared; in a network without blocks, those of
    normalizations. The loss is the mean squared difference relative to the teacher's mean square, averaged
    over these modules (Romero et al. 2015, arXiv:1412.6550).

    Args:
        student: the module to train.
        teacher: the module to imitate.
        inputs: input specs, for one run on zeros that determines the shapes.
        weight: factor of this loss.
    """

    def __init__(self, student: "torch.nn.Module", teacher: "torch.nn.Module", inputs: Any, weight: float):
        self.weight = weight
        self.student_features: dict[str, Any] = {}
        self.teacher_features: dict[str, Any] = {}
        names = _blocks(teacher)
        self.handles = [
            *_record_outputs(student, names, self.student_features),
            *_record_outputs(teacher, names, self.teacher_features),
        ]
        torch_engine.run(student, inputs)
        torch_engine.run(teacher, inputs)
        comparable = [
            name
            for name in names
            if _same_shape(self.student_features.get(name), self.teacher_features.get(name))
        ]
        # A sequence of blocks returns the very output of its last block, which must not count twice.
        self.names = [
            name
            for number, name in enumerate(comparable)
            if not any(
                self.teacher_features[name] is self.teacher_features[other]
                for other in comparable[number + 1 :]
            )
        ]

    def loss(self) -> "torch.Tensor":
        """Loss of the batch that both modules processed last."""
        import torch

        total = torch.zeros(())
        for name in self.names:
            target = self.teacher_features[name].detach()
            difference = (self.student_features[name] - target).square().mean()
            total = total + difference / (target.square().mean() + 1e-7)
        return total * (self.weight / max(1, len(self.names)))

    def remove(self) -> None:
        """Remove the hooks from both modules."""
        for handle in self.handles:
            handle.remove()


def _blocks(module: "torch.nn.Module") -> list[str]:
    """Names of the modules whose outputs are compared."""
    import torch

    blocks = [name for name, inner in module.named_modules() if name and any(inner.children())]
    norms = torch.nn.modules.batchnorm._BatchNorm
    return blocks or [name for name, inner in module.named_modules() if isinstance(inner, norms)]


def _record_outputs(module: "torch.nn.Module", names: list[str], into: dict[str, Any]) -> list[Any]:
    """Add hooks that store the last output of each module; return their handles."""

    def hook(name: str) -> Any:
        def store(_: Any, __: Any, output: Any) -> None:
            into[name] = output

        return store

    inner = dict(module.named_modules())
    return [inner[name].register_forward_hook(hook(name)) for name in names if name in inner]


def _same_shape(student_features: Any, teacher_features: Any) -> bool:
    import torch

    both = isinstance(student_features, torch.Tensor) and isinstance(teacher_features, torch.Tensor)
    return both and student_features.shape == teacher_features.shape and student_features.is_floating_point()


class Learner:
    """Student and teacher with the interface that ``edgeopt.stages._training_loop`` expects.

    The optimizer is SGD with Nesterov momentum. Images use the channels-last memory format, for which oneDNN
    has faster kernels; the results are the same.

    Args:
        student: the module to train, in place.
        teacher: the module that provides the targets.
        keeper: enforces the student's zeros and shared values.
        temperature: divisor of the logits in the loss; 1 without distillation.
        squared_error: use the mean squared error, with outputs as targets, instead of the KL divergence, with
            probabilities as targets.
        fake_quantizer: simulates int8 arithmetic, for quantization-aware training.
        hints: adds feature distillation.

    Raises:
        StageError: the student has no trainable weights.
    """

    def __init__(
        self,
        student: "torch.nn.Module",
        teacher: "torch.nn.Module",
        keeper: Keeper,
        *,
        temperature: float,
        squared_error: bool,
        fake_quantizer: FakeQuantizer | None = None,
        hints: "Hints | None" = None,
    ) -> None:
        import torch

        self.student = student.to(memory_format=torch.channels_last)
        self.teacher_module = teacher.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.keeper, self.fake_quantizer, self.hints = keeper, fake_quantizer, hints
        self.last_teacher_inputs: object = None
        self.temperature, self.squared_error = temperature, squared_error
        self.device = next(iter(student.parameters()), torch.zeros(0)).device
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        if not parameters:
            raise StageError(
                "the model has no weights that can be trained", fix="remove finetune from this variant"
            )
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            momentum=MOMENTUM,
            nesterov=True,
        )
        self.returns_probabilities: dict[int, bool] = {}
        self.scaled = ScaledOutputs()

    def begin(self, epoch: int) -> bool:
        """Prepare an epoch; return whether its weights may become the result."""
        # Weights from before the final sparsity, or from training in float, would be judged too well.
        final = self.keeper.begin(epoch)
        return final if self.fake_quantizer is None else self.fake_quantizer.begin(epoch) and final

    def step(self, inputs: Sequence[NDArray[Any]], target: Outputs, rate: float) -> float:
        """Train on one batch and return the loss.

        Args:
            inputs: arrays with the batch axis first.
            target: outputs or probabilities, see ``squared_error``.
            rate: learning rate.
        """
        import torch

        if self.fake_quantizer is None:
            self.student.train()
        else:
            self.fake_quantizer.train(self.student)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The targets may come from a cache: the hints need the teacher's features of this very batch.
        if self.hints is not None and self.last_teacher_inputs is not inputs:
            self.teacher(inputs)
        logits = self._logits(self.student, inputs)
        expected = torch.from_numpy(target).to(self.device)
        if self.squared_error:
            loss = torch.nn.functional.mse_loss(logits, expected)
        else:
            temperature = self.temperature
            log_probabilities = torch.nn.functional.log_softmax(logits / temperature, dim=1)
            # Times T^2, so that the size of the gradients does not depend on the temperature (Hinton et al.
            # 2015, arXiv:1503.02531).
            loss = (
                torch.nn.functional.kl_div(log_probabilities, expected, reduction="batchmean")
                * temperature**2
            )
        if self.hints is not None:
            loss = loss + self.hints.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.keeper.guide()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.keeper.hold()
        return float(loss.detach())

    def outputs(self, inputs: Sequence[NDArray[Any]]) -> Outputs:
        """The student's outputs, in inference mode; with squared errors scaled, several concatenated."""
        return self._predict(self.student.eval(), inputs)

    def teacher(self, inputs: Sequence[NDArray[Any]]) -> Outputs:
        """The teacher's outputs, in the same form."""
        self.last_teacher_inputs = inputs
        return self._predict(self.teacher_module, inputs)

    def save(self, folder: Path) -> None:
        """Write the complete training state to ``state.pt``."""
        import torch

        state = {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "keeper": self.keeper.state(),
            "rounder": {} if self.fake_quantizer is None else self.fake_quantizer.state(),
            "random": torch.get_rng_state(),  # dropout draws from it
        }
        if self.device.type == "cuda":
            state["random on the GPU"] = torch.cuda.get_rng_state()
        torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Restore the state that ``save`` wrote."""
        import torch

        # It may have been trained on a GPU before, and this machine has none.
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.keeper.restore(self._here(state["keeper"]))
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "random on the GPU" in state:
            torch.cuda.set_rng_state(state["random on the GPU"])
        if self.fake_quantizer is not None:
            self.fake_quantizer.restore(self._here(state["rounder"]))

    def _here(self, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        return {name: value.to(self.device) for name, value in tensors.items()}

    def _predict(self, module: "torch.nn.Module", inputs: Sequence[NDArray[Any]]) -> Outputs:
        import torch

        with torch.no_grad():
            return np.asarray(self._logits(module, inputs).cpu().numpy(), np.float32)

    def _logits(self, module: "torch.nn.Module", inputs: Sequence[NDArray[Any]]) -> "torch.Tensor":
        """The output of a module, with probabilities converted to logits; several are concatenated.

        The logarithm of probabilities has the same softmax as the logits that they were computed from.
        """
        import torch
        from torch.utils import _pytree

        values = [torch.from_numpy(value).to(self.device) for value in inputs]
        values = [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in values]
        if self.fake_quantizer is not None and module is self.student:
            result = self.fake_quantizer.compute(module, values)
        else:
            result = module(*values)
        values = [value for value in _pytree.tree_leaves(result) if value.is_floating_point()]
        if self.squared_error:
            return self.scaled(values)
        if len(values) > 1:
            raise StageError(
                f"loss: kl teaches one output of class scores, and the model has {len(values)} outputs",
                fix="set loss: mse in finetune, which teaches every output",
            )
        (outputs,) = values
        if outputs.ndim != 2:
            return outputs
        # Decided once per module: a later batch that happens to look different must not change the loss.
        if id(module) not in self.returns_probabilities:
            first = outputs.detach()
            self.returns_probabilities[id(module)] = bool((first >= 0).all()) and bool(
                ((first.sum(dim=1) - 1).abs() < 1e-3).all()
            )
        return outputs.clamp_min(1e-7).log() if self.returns_probabilities[id(module)] else outputs
