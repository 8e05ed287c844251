"""Weight sharing in a PyTorch module: each layer with a handful of distinct weights."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.layer_names import matching
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.prune import counting as torch_counting
from edgeopt.formats.torch.prune import masks as torch_masks
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch

ROUNDS = 50
"""Of k-means; it has come to rest long before, as a rule."""


class ClusterTorch(Stage):
    """k-means over the weights of each layer, which then share ``clusters`` values.

    Han et al. 2016 (arXiv:1510.00149), section 3, with centroids spread evenly to begin with, which serves
    large weights best. Weights that are zero stay zero. The file compresses better; nothing gets faster.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    produces: ClassVar[str] = "torch"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"cluster": frozenset({"clusters"})}
    after: ClassVar[frozenset[str]] = frozenset({"prune"})
    needs_finetuning: ClassVar[bool] = True
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    extra: ClassVar[str | None] = "torch"

    clusters: int = Field(16, ge=2, le=256, description="distinct weights per layer, zero aside")
    keep: tuple[str, ...] = Field((), description="patterns of layers to leave alone")

    def key_parts(self) -> dict[str, str]:
        """Patterns once meant every layer in whose name they occur: results of that time are others."""
        return {"patterns": "whole names"} if self.keep else {}

    def run(self, model: Model, context: Context) -> Model:
        """Cluster one module.

        Raises:
            StageError: a pattern matches no layer, or no layer has more weights than clusters.
        """
        import torch

        module = torch_module.build(model)
        described = torch_module.about(model.path)
        layers = torch_counting.weighted(module)
        spared = matching(self.keep, list(layers), "keep")
        keeps: torch_masks.Keeps = dict(described.get("keeps", {}))
        for name, layer in layers.items():
            if name in spared or layer.weight.numel() <= self.clusters:
                continue
            context.progress(f"clustering {name}")
            sparse = f"{name}.weight" in keeps
            with torch.no_grad():
                layer.weight.copy_(_clustered(layer.weight, self.clusters, sparse))
            keeps[f"{name}.weight"] = {"kind": "clusters"}
        if keeps == described.get("keeps", {}):
            raise StageError(
                f"no layer has more than {self.clusters} weights to cluster",
                fix="ask for fewer clusters, or keep fewer layers",
            )
        context.note(
            f"weights clustered to {self.clusters} values per layer: this makes the compressed download "
            "smaller, and neither the file nor the inference on common runtimes"
        )
        return torch_module.save(module, context.folder / "model", model, changed={"keeps": keeps})


def _clustered(weight: "torch.Tensor", clusters: int, sparse: bool) -> "torch.Tensor":
    """Each weight replaced by the nearest centroid of k-means; zeros stay where ``sparse``."""
    import torch

    flat = weight.detach().flatten().double()
    chosen = flat != 0 if sparse else torch.ones_like(flat, dtype=torch.bool)
    values = flat[chosen]
    centroids = torch.linspace(float(values.min()), float(values.max()), clusters, dtype=torch.float64)
    for _ in range(ROUNDS):
        # Sorted centroids: the nearest one changes halfway between two.
        places = torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
        sums = torch.zeros_like(centroids).index_add_(0, places, values)
        counts = torch.bincount(places, minlength=clusters)
        moved = torch.where(counts > 0, sums / counts.clamp_min(1), centroids).sort().values
        if torch.equal(moved, centroids):
            break
        centroids = moved
    flat[chosen] = centroids[torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)]
    return flat.to(weight.dtype).view_as(weight)
