"""Fine-tuning of PyTorch modules."""

from typing import ClassVar

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.prune.masks import Keeper
from edgeopt.formats.torch.train.distillation import Hints, Learner
from edgeopt.formats.torch.train.fake_quant import FakeQuantizer
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._training import Finetune
from edgeopt.stages._training_loop import train


class FinetuneTorch(Finetune):
    """Train a PyTorch module, batch norm statistics included; zeros and shared values are preserved."""

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    produces: ClassVar[str] = "torch"
    worker: ClassVar[Worker] = "torch"
    uses_gpu: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    extra: ClassVar[str | None] = "torch"

    hints: float = Field(
        10.0,
        ge=0,
        description="with distill: weight of the feature loss, which matches the outputs of blocks of "
        "unchanged shape to those in the source model; 0: match the model's outputs only",
    )
    per_channel: bool = Field(
        True, description="with quantization_aware: one weight scale per output channel, not per layer"
    )

    def run(self, model: Model, context: Context) -> Model:
        """Train one module.

        Raises:
            StageError: the training data are missing or unusable, or the loss is not finite.
        """
        import torch

        source = context.source
        if source is None or source.format != "torch":
            raise StageError(
                f"the source model is {source.format if source else 'missing'}, not a PyTorch module",
                fix="put finetune_torch after load_torch",
            )
        # For dropout; order and augmentation have their own generators.
        torch.manual_seed(self.seed)
        student = torch_module.build(model)
        teacher = torch_module.build(source)
        # Features that int8 cannot represent must be free to change, so only the outputs are distilled.
        use_hints = self.distill and not self.quantization_aware
        hints = Hints(student, teacher, model.inputs, self.hints) if use_hints and self.hints else None
        with torch_engine.quiet(), torch_engine.on_gpu((student, teacher), model.inputs, context.note):
            learner = Learner(
                student,
                teacher,
                Keeper(student, model.path, self.epochs),
                temperature=self.temperature if self.distill else 1.0,
                squared_error=self.loss == "mse",
                fake_quantizer=(
                    FakeQuantizer(self.epochs, per_channel=self.per_channel)
                    if self.quantization_aware
                    else None
                ),
                hints=hints,
            )
            outcome = train(self, learner, model, context)
        if hints is not None:
            hints.remove()
        context.note(
            f"fine-tuned for {outcome.epochs} epochs, kept the weights of epoch {outcome.best.epoch}: "
            f"held-out loss {outcome.start.loss:.4f} to {outcome.best.loss:.4f}, "
            f"{self.score_name} {outcome.start.score:.1%} to {outcome.best.score:.1%}"
        )
        return torch_module.save(student, context.folder / "model", model)
