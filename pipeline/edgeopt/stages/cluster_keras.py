"""Weights of Keras models that share few values."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgeopt.formats.keras.files import archive as keras_archive
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.keras.prune import sparsity as keras_sparsity
from edgeopt.formats.keras.quantize.clusters import share_values
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class ClusterKeras(Stage):
    """Replace the weights of every convolution and dense layer by few values, found by k-means.

    It pays off in the download: the file compresses better, and stays as large and as fast as it was.
    Fine-tuning keeps equal weights equal and trains the shared values. Depthwise kernels and biases are left
    as they are: they have few weights.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras"})
    produces: ClassVar[str] = "keras"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"cluster": frozenset({"clusters"})}
    after: ClassVar[frozenset[str]] = frozenset({"prune"})
    needs_finetuning: ClassVar[bool] = True
    worker: ClassVar[Worker] = "tensorflow"
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "h5py")
    extra: ClassVar[str | None] = "keras"

    scheme: Literal["clusters"] = Field("clusters", description="k-means of the weights, layer by layer")
    clusters: int = Field(
        16, ge=2, le=256, description="how many different values a layer's weights may have"
    )
    keep: tuple[str, ...] = Field((), description="layers, by name or pattern, that keep their weights")
    layers: dict[str, Annotated[int, Field(ge=2, le=256)]] = Field(
        {}, description="number of values for layers, by name or pattern, instead of that for all"
    )
    trust: bool = Field(False, description="load models with Lambda layers, which run Python code")

    def run(self, model: Model, context: Context) -> Model:
        """Cluster one model.

        Raises:
            StageError: when it has no layer to cluster, or a pattern matches none.
        """
        network = keras_loading.load_keras(model.path, self.trust)
        kept = keras_archive.kept_in(model.path)
        found = keras_sparsity.chosen(keras_sparsity.kernels(network, model.path.name), self.keep)
        done, lost = share_values(found, self.clusters, self.layers, kept)
        context.note(
            f"the weights of {len(found)} layers share at most {self.clusters} values each, at "
            f"{lost:.2%} of their energy: download size only (compressed); the file and the time per "
            "inference stay as they are"
        )
        path = context.folder / "model.keras"
        keras_archive.save(network, path, kept | done)
        inputs, outputs = keras_archive.specs(network, model.inputs)
        return Model(format="keras", path=path, inputs=inputs, outputs=outputs)
