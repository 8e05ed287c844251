"""Weight clustering of PyTorch modules."""

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
"""Limit on the k-means iterations; most layers converge much earlier."""


class ClusterTorch(Stage):
    """Cluster the weights of each layer into ``clusters`` shared values, by k-means.

    Han et al. 2016 (arXiv:1510.00149), section 3, with linearly spaced initial centroids, which represent
    large weights best. The zeros of a pruned layer stay zero. The model compresses better for download; its
    file size and latency do not change.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    produces: ClassVar[str] = "torch"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"cluster": frozenset({"clusters"})}
    after: ClassVar[frozenset[str]] = frozenset({"prune"})
    needs_finetuning: ClassVar[bool] = True
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    extra: ClassVar[str | None] = "torch"

    clusters: int = Field(
        16, ge=2, le=256, description="number of distinct weights per layer, not counting zero"
    )
    keep: tuple[str, ...] = Field((), description="layers to skip, by name or pattern")

    def key_parts(self) -> dict[str, str]:
        """Separate from cached results of the time when a pattern also matched parts of a name."""
        return {"patterns": "whole names"} if self.keep else {}

    def run(self, model: Model, context: Context) -> Model:
        """Cluster one module.

        Raises:
            StageError: a pattern matches no layer, or no layer has more weights than ``clusters``.
        """
        import torch

        module = torch_module.build(model)
        record = torch_module.about(model.path)
        layers = torch_counting.weighted(module)
        excluded = matching(self.keep, list(layers), "keep")
        keeps: torch_masks.Keeps = dict(record.get("keeps", {}))
        for name, layer in layers.items():
            if name in excluded or layer.weight.numel() <= self.clusters:
                continue
            context.progress(f"clustering {name}")
            sparse = f"{name}.weight" in keeps
            with torch.no_grad():
                layer.weight.copy_(_clustered(layer.weight, self.clusters, sparse))
            keeps[f"{name}.weight"] = {"kind": "clusters"}
        if keeps == record.get("keeps", {}):
            raise StageError(
                f"no layer has more than {self.clusters} weights to cluster",
                fix="set fewer clusters, or shorten 'keep'",
            )
        context.note(
            f"clustered the weights to {self.clusters} values per layer: the compressed download shrinks; "
            "file size and latency on common runtimes do not change"
        )
        return torch_module.save(module, context.folder / "model", model, changed={"keeps": keeps})


def _clustered(weight: "torch.Tensor", clusters: int, sparse: bool) -> "torch.Tensor":
    """Replace each weight by its nearest k-means centroid; if ``sparse``, zeros stay zero."""
    import torch

    flat = weight.detach().flatten().double()
    clustered = flat != 0 if sparse else torch.ones_like(flat, dtype=torch.bool)
    values = flat[clustered]
    # Linear spacing: random centroids would leave the few large weights, which matter most, without one.
    centroids = torch.linspace(float(values.min()), float(values.max()), clusters, dtype=torch.float64)
    for _ in range(ROUNDS):
        # With sorted centroids, the boundary between two clusters is the midpoint of their centroids.
        assignment = torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
        sums = torch.zeros_like(centroids).index_add_(0, assignment, values)
        counts = torch.bincount(assignment, minlength=clusters)
        # An empty cluster keeps its centroid: a mean of nothing would be NaN.
        updated = torch.where(counts > 0, sums / counts.clamp_min(1), centroids).sort().values
        if torch.equal(updated, centroids):
            break
        centroids = updated
    flat[clustered] = centroids[torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)]
    return flat.to(weight.dtype).view_as(weight)
