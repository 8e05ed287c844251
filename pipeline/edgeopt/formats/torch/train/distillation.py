"""A PyTorch module that learns from another: one step at a time, and all of its state in files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.prune.masks import Keeper
from edgeopt.formats.torch.train.fake_quant import Rounder

if TYPE_CHECKING:
    import torch

Scores: TypeAlias = NDArray[np.float32]

MOMENTUM = 0.9
DECAY = 1e-4
"""Of weights only: a normalization's scale has no reason to be small."""

LONGEST_STEP = 5.0
"""Norm to which the gradient is cut: a pruned model's first steps would throw it far off."""


class Hints:
    """What both networks compute on the way, where its shape is the same.

    Compared are the outputs of blocks, the modules that hold others; in a network without blocks, those of
    normalizations. Its part of the loss is the mean squared difference relative to the teacher's mean
    square, averaged over these places (Romero et al. 2015, arXiv:1412.6550).
    """

    def __init__(self, student: "torch.nn.Module", teacher: "torch.nn.Module", inputs: Any, weight: float):
        self.weight = weight
        self.ours: dict[str, Any] = {}
        self.theirs: dict[str, Any] = {}
        names = _blocks(teacher)
        self.handles = [
            *_watch(student, names, self.ours),
            *_watch(teacher, names, self.theirs),
        ]
        torch_engine.run(student, inputs)
        torch_engine.run(teacher, inputs)
        alike = [name for name in names if _alike(self.ours.get(name), self.theirs.get(name))]
        # A row of blocks gives what its last block gives.
        self.names = [
            name
            for number, name in enumerate(alike)
            if not any(self.theirs[name] is self.theirs[other] for other in alike[number + 1 :])
        ]

    def loss(self) -> "torch.Tensor":
        """Of the batch that both networks saw last."""
        import torch

        total = torch.zeros(())
        for name in self.names:
            wanted = self.theirs[name].detach()
            difference = (self.ours[name] - wanted).square().mean()
            total = total + difference / (wanted.square().mean() + 1e-7)
        return total * (self.weight / max(1, len(self.names)))

    def remove(self) -> None:
        """Stop watching."""
        for handle in self.handles:
            handle.remove()


def _blocks(module: "torch.nn.Module") -> list[str]:
    import torch

    blocks = [name for name, inner in module.named_modules() if name and any(inner.children())]
    norms = torch.nn.modules.batchnorm._BatchNorm
    return blocks or [name for name, inner in module.named_modules() if isinstance(inner, norms)]


def _watch(module: "torch.nn.Module", names: list[str], into: dict[str, Any]) -> list[Any]:
    def keeper(name: str) -> Any:
        def keep(_: Any, __: Any, output: Any) -> None:
            into[name] = output

        return keep

    inner = dict(module.named_modules())
    return [inner[name].register_forward_hook(keeper(name)) for name in names if name in inner]


def _alike(ours: Any, theirs: Any) -> bool:
    import torch

    both = isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)
    return both and ours.shape == theirs.shape and ours.is_floating_point()


class Learner:
    """Student and teacher, with what the loop of ``edgeopt.stages._training_loop`` asks for.

    Stochastic gradient descent with Nesterov's momentum. Images are kept channels-last in memory, for which
    oneDNN has the faster kernels; results are the same.

    Args:
        student: learns, in place.
        teacher: answers, and is left as it is.
        keeper: holds the student to its zeros and shared values.
        temperature: softens the scores; 1 without distillation.
        squared_error: the loss is the mean squared error, and targets are outputs; else targets are
            probabilities, and the loss their divergence.
        rounder: for quantization-aware training.
        hints: lets the student imitate the teacher's inner features too.
    """

    def __init__(
        self,
        student: "torch.nn.Module",
        teacher: "torch.nn.Module",
        keeper: Keeper,
        *,
        temperature: float,
        squared_error: bool,
        rounder: Rounder | None = None,
        hints: "Hints | None" = None,
    ) -> None:
        import torch

        self.student = student.to(memory_format=torch.channels_last)
        self.imitated = teacher.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.keeper, self.rounder, self.hints = keeper, rounder, hints
        self.asked: object = None
        self.temperature, self.squared_error = temperature, squared_error
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        if not parameters:
            raise StageError("the model has no weights that can be trained", fix="leave finetune out")
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            momentum=MOMENTUM,
            nesterov=True,
        )
        self.softmaxed: dict[int, bool] = {}

    def begin(self, epoch: int) -> bool:
        """Prepare for an epoch; whether weights of this epoch may be kept."""
        settled = self.keeper.begin(epoch)
        return settled if self.rounder is None else self.rounder.begin(epoch) and settled

    def step(self, inputs: Sequence[NDArray[Any]], target: Scores, rate: float) -> float:
        """Learn from one batch; the loss."""
        import torch

        if self.rounder is None:
            self.student.train()
        else:
            self.rounder.train(self.student)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.hints is not None and self.asked is not inputs:
            self.teacher(inputs)
        scores = self._scores(self.student, inputs)
        wanted = torch.from_numpy(target)
        if self.squared_error:
            loss = torch.nn.functional.mse_loss(scores, wanted)
        else:
            heat = self.temperature
            shares = torch.nn.functional.log_softmax(scores / heat, dim=1)
            loss = torch.nn.functional.kl_div(shares, wanted, reduction="batchmean") * heat**2
        if self.hints is not None:
            loss = loss + self.hints.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.keeper.guide()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), LONGEST_STEP)
        self.optimizer.step()
        self.keeper.hold()
        return float(loss.detach())

    def outputs(self, inputs: Sequence[NDArray[Any]]) -> Scores:
        """The student's first output, in inference mode."""
        return self._answer(self.student.eval(), inputs)

    def teacher(self, inputs: Sequence[NDArray[Any]]) -> Scores:
        """The teacher's first output."""
        self.asked = inputs
        return self._answer(self.imitated, inputs)

    def save(self, folder: Path) -> None:
        """Everything that the next step depends on."""
        import torch

        state = {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "keeper": self.keeper.state(),
            "rounder": {} if self.rounder is None else self.rounder.state(),
            "random": torch.get_rng_state(),  # of dropout
        }
        torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Take up what ``save`` wrote."""
        import torch

        state = torch.load(folder / "state.pt", weights_only=True)
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.keeper.restore(state["keeper"])
        torch.set_rng_state(state["random"])
        if self.rounder is not None:
            self.rounder.restore(state["rounder"])

    def _answer(self, module: "torch.nn.Module", inputs: Sequence[NDArray[Any]]) -> Scores:
        import torch

        with torch.no_grad():
            return np.asarray(self._scores(module, inputs).numpy(), np.float32)

    def _scores(self, module: "torch.nn.Module", inputs: Sequence[NDArray[Any]]) -> "torch.Tensor":
        """First output; of what has been through a softmax, the logarithm, which has the same softmax."""
        import torch
        from torch.utils import _pytree

        values = [torch.from_numpy(value) for value in inputs]
        values = [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in values]
        if self.rounder is not None and module is self.student:
            answer = self.rounder.compute(module, values)
        else:
            answer = module(*values)
        scores = _pytree.tree_leaves(answer)[0]
        if self.squared_error or scores.ndim != 2:
            return scores
        if id(module) not in self.softmaxed:
            found = scores.detach()
            self.softmaxed[id(module)] = bool((found >= 0).all()) and bool(
                ((found.sum(dim=1) - 1).abs() < 1e-3).all()
            )
        return scores.clamp_min(1e-7).log() if self.softmaxed[id(module)] else scores
