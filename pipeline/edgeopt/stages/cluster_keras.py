"""Weight clustering of Keras models."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgeopt.formats.keras.files import archive as keras_archive
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.keras.prune import sparsity as keras_sparsity
from edgeopt.formats.keras.quantize.clusters import share_values
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._keras import KerasStage


class ClusterKeras(KerasStage):
    """Cluster the weights of every convolution and dense layer into few shared values, by k-means.

    The model compresses better for download; its file size and latency do not change. Fine-tuning keeps
    equal weights equal and trains the shared values. Depthwise kernels and biases are not clustered: they
    have few weights. Source: Han et al. 2016, arXiv:1510.00149.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras"})
    produces: ClassVar[str] = "keras"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"cluster": frozenset({"clusters"})}
    after: ClassVar[frozenset[str]] = frozenset({"prune"})
    needs_finetuning: ClassVar[bool] = True
    worker: ClassVar[Worker] = "tensorflow"
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "h5py")
    extra: ClassVar[str | None] = "keras"

    scheme: Literal["clusters"] = Field("clusters", description="k-means over the weights of each layer")
    clusters: int = Field(16, ge=2, le=256, description="largest number of distinct weights per layer")
    keep: tuple[str, ...] = Field((), description="layers to skip, by name or pattern")
    layers: dict[str, Annotated[int, Field(ge=2, le=256)]] = Field(
        {}, description="number of clusters by layer name or pattern, overriding clusters"
    )

    def run(self, model: Model, context: Context) -> Model:
        """Cluster one model.

        Raises:
            StageError: the model has no layer to cluster, or a pattern matches no layer.
        """
        network = keras_loading.load_keras(model.path, self.trust, self.code)
        kept = keras_archive.kept_in(model.path)
        kernels = keras_sparsity.chosen(keras_sparsity.kernels(network, model.path.name), self.keep)
        clustered, lost = share_values(kernels, self.clusters, self.layers, kept)
        context.note(
            f"clustered the weights of {len(kernels)} layers to at most {self.clusters} values each, losing "
            f"{lost:.2%} of their energy: the compressed download shrinks; file size and latency do not "
            "change"
        )
        path = context.folder / "model.keras"
        keras_archive.save(network, path, kept | clustered)
        inputs, outputs = keras_archive.specs(network, model.inputs)
        return Model(format="keras", path=path, inputs=inputs, outputs=outputs)
