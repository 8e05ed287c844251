"""Training of quantized TFLite files: the source model is distilled into their integers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.graph.interpreter import finished
from edgeopt.formats.tflite.train.distillation import CodeLearner, Network, network_of
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._training import Training
from edgeopt.stages._training_loop import train


class DistillTflite(Training):
    """Train the weights and biases of an int8 file to give the outputs of the source model.

    The file is simulated as it runs, with the rounding of all activations, on the recipe's training data;
    labels are not needed. A weight moves between the values that its layer has, and less easily to a value
    with a longer code: the size that ``coarsen`` has reached remains. Scales, ranges and operators stay as
    they are.

    The source model is the one before pruning and quantization: a PyTorch module, or its float TFLite file.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"distill": frozenset({"integers"})}
    after: ClassVar[frozenset[str]] = frozenset({"quantize", "coarsen"})
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors", "ai-edge-litert")
    extra: ClassVar[str | None] = "torch"

    epochs: int = Field(4, ge=1, description="passes over the training data")
    learning_rate: float = Field(
        0.01, gt=0, description="peak learning rate of the one-cycle schedule, in steps of a weight"
    )
    loss: Literal["mse", "kl"] = Field(
        "mse", description="mse: of all outputs, and of class scores before softmax; kl: of class scores only"
    )
    batch_size: int = Field(64, ge=2, description="samples per step")

    def run(self, model: Model, context: Context) -> Model:
        """Train one file.

        Raises:
            StageError: the file has no int8 weights, or an operator that is not simulated; the source model
                has another format; the training data are missing or unusable; or the loss is not finite.
        """
        file = load(model.path)
        signature = read_signature(model.path)
        described = model if model.inputs else model.model_copy(update={"inputs": signature.inputs})
        learner = CodeLearner(
            file,
            _teacher(context.source, described),
            temperature=self.temperature,
            squared_error=self.loss == "mse",
        )
        # With one thread, sums have the same order on every machine.
        with torch_engine.quiet(), torch_engine.one_thread():
            outcome = train(self, learner, _in_float(described), context)
        context.note(
            f"distilled for {outcome.epochs} epochs, kept the weights of epoch {outcome.best.epoch}: "
            f"{learner.changed:.1%} of them have changed, "
            f"held-out loss {outcome.start.loss:.4f} to {outcome.best.loss:.4f}, "
            f"{self.score_name} {outcome.start.score:.1%} to {outcome.best.score:.1%}"
        )
        path = context.folder / "model.tflite"
        path.write_bytes(learner.content())
        return finished(path, described)


def _in_float(model: Model) -> Model:
    """The model with inputs of real numbers, which the simulation rounds itself."""
    inputs = [
        spec if spec.scale is None else spec.model_copy(update={"dtype": "float32"}) for spec in model.inputs
    ]
    return model.model_copy(update={"inputs": tuple(inputs)})


def _teacher(source: Model | None, model: Model) -> Network:
    """The source model, for inputs of ``model``.

    Raises:
        StageError: it has a format that torch does not run.
    """
    if source is not None and source.format == "tflite":
        return network_of(load(source.path))
    if source is None or source.format != "torch":
        raise StageError(
            f"the source model is {source.format if source else 'missing'}, which cannot be the teacher: "
            "a PyTorch module or a TFLite file can",
            fix="leave distill out, or prune and finetune out, before which the file is still Keras'",
        )
    module = torch_module.build(source)
    turned = [
        (theirs.layout, ours.layout) == ("NCHW", "NHWC")
        for theirs, ours in zip(source.inputs, model.inputs, strict=True)
    ]

    def network(inputs: Any) -> Any:
        from torch.utils import _pytree

        values = [
            value.permute(0, 3, 1, 2) if turn else value for value, turn in zip(inputs, turned, strict=True)
        ]
        leaves = _pytree.tree_leaves(module(*values))
        return [leaf for leaf in leaves if leaf.is_floating_point()]

    return network
