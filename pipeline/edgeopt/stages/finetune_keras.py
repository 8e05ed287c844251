"""Fine-tuning of Keras models."""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import archive as keras_archive
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.keras.graph.outputs import Balance, Scorer, shared_features
from edgeopt.formats.keras.prune import sparsity as keras_sparsity
from edgeopt.formats.keras.prune.masks import Constraints
from edgeopt.formats.keras.train.distillation import Learner, plain
from edgeopt.formats.keras.train.fake_quant import FakeQuantized
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._keras import KerasStage
from edgeopt.stages._training import Finetune
from edgeopt.stages._training_data import TrainingData
from edgeopt.stages._training_loop import train

RANGE_SAMPLES = 256
"""Number of samples on which quantization-aware training measures the activation ranges."""


class FinetuneKeras(KerasStage, Finetune):
    """Train a Keras 3 model on TensorFlow, with Nesterov momentum and a one-cycle learning rate.

    The zeros of pruning and the shared values of clustering are preserved. Batch normalization updates its
    statistics. With ``quantization_aware`` the network is trained as tfmot's int8 model and converted back
    to float: quantizing the file is a separate stage, and accuracy is measured on the quantized file.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras"})
    produces: ClassVar[str] = "keras"
    worker: ClassVar[Worker] = "tensorflow"
    requires: ClassVar[tuple[str, ...]] = (
        "tensorflow",
        "keras",
        "tf_keras",
        "h5py",
        "tensorflow-model-optimization",
    )
    extra: ClassVar[str | None] = "keras"

    hints: float = Field(
        10.0,
        ge=0,
        description="with distill: weight of the feature loss, which matches the outputs of layers of "
        "unchanged shape to those in the source model; 0: match the model's outputs only",
    )

    def run(self, model: Model, context: Context) -> Model:
        """Train one model.

        Raises:
            StageError: the training data are missing or unusable, or the loss is not finite.
        """
        if context.source is None:
            raise StageError(
                "fine-tuning needs the source model", fix="let the recipe's planner choose the stages"
            )
        import keras

        # Dropout layers saved without a seed draw one on loading.
        keras.utils.set_random_seed(self.seed)
        network = keras_loading.load_keras(model.path, self.trust, self.code)
        kept = keras_archive.kept_in(model.path)
        inputs, outputs = keras_archive.specs(network, model.inputs)
        described = model.model_copy(update={"inputs": inputs})
        reference = self._teacher(context.source)
        features = self._features(network, reference)
        balance = Balance()
        teacher = Scorer(reference, self.loss, features, balance)
        student = Scorer(network, self.loss, features, balance)
        fake_quantized = self._fake_quantize(network, described, context) if self.quantization_aware else None
        weights = {
            name: plain(
                fake_quantized.variable(*keras_archive.weight_place(name)) if fake_quantized else variable
            )
            for name, variable in keras_sparsity.kept_weights(network, model.path.name, kept)
        }
        constraints = Constraints(weights, kept, keras_archive.dense_in(model.path), self.epochs)
        temperature = self.temperature if self.distill else 1.0
        learner = Learner(
            Scorer(fake_quantized.network, self.loss, balance=balance) if fake_quantized else student,
            teacher,
            self.loss,
            temperature,
            constraints,
            fake_quantized.measure if fake_quantized else None,
            self.hints,
        )
        outcome = train(self, learner, described, context)
        learner.finish()
        if fake_quantized:
            fake_quantized.copy_back()
            student.restore()
        path = context.folder / "model.keras"
        keras_archive.save(network, path, kept)
        context.note(
            f"fine-tuned for {outcome.epochs} epochs, kept the weights of epoch {outcome.best.epoch}: "
            f"held-out loss {outcome.start.loss:.4f} to {outcome.best.loss:.4f}, "
            f"{self.score_name} {outcome.start.score:.1%} to {outcome.best.score:.1%}"
        )
        return Model(format="keras", path=path, inputs=inputs, outputs=outputs)

    def _features(self, network: Any, reference: Any) -> list[str]:
        """Layers whose outputs are distilled: none with tfmot, whose network renames the layers."""
        if not self.distill or not self.hints or self.quantization_aware:
            return []
        return shared_features(network, reference)

    def _fake_quantize(self, network: Any, model: Model, context: Context) -> FakeQuantized:
        """The model with fake quantization; the ranges come from the calibration or training data."""
        feed = context.calibration or context.training
        if feed is None:
            raise StageError(
                "fine-tuning needs training data", fix="add data.train: {uses: npz, with: {path: train.npz}}"
            )
        data = TrainingData.read(feed, model, limit=RANGE_SAMPLES)
        return FakeQuantized(network, model.path.name, data.batch(np.arange(len(data))))

    def _teacher(self, source: Model) -> Any:
        if source.format == "keras":
            return keras_loading.load_keras(source.path, self.trust, self.code)
        if source.format == "tf_keras":
            return keras_loading.load_tf_keras(source.path, self.trust, self.code)
        raise StageError(
            f"a Keras model cannot be distilled from a source model in the format {source.format}",
            fix="start from a .keras or .h5 model",
        )
