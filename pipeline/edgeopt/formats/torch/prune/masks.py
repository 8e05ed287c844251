"""Constraints on the weights of a PyTorch module during training: zeros, N:M sparsity, shared values.

``model.json`` lists the weights under ``keeps``, each with its ``kind``. The pattern itself is derived from
the stored weights: zeros stay zero, equal values stay equal. For ``zeros``, ``dense.safetensors`` contains
the weights before pruning, so that training can increase the sparsity gradually.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt.formats.torch.files import module as torch_module

if TYPE_CHECKING:
    import torch

Keeps: TypeAlias = dict[str, dict[str, Any]]
"""Weight name -> ``{"kind": "zeros" | "n_m" | "clusters"}``."""

DENSE = "dense.safetensors"
"""File with the weights before pruning."""


class Keeper:
    """Enforces the constraints in ``model.json`` on the weights of a module during training.

    Sparsity increases by the cubic schedule of Zhu and Gupta 2017 (arXiv:1710.01878) over the first half of
    the epochs; each time the currently smallest weights are set to zero. Shared values are updated together,
    with the mean of their gradients (Han et al. 2016, arXiv:1510.00149, which uses the sum).

    Args:
        module: the module to be trained, with its pruned or clustered weights.
        folder: folder of the model, with ``model.json``.
        epochs: number of epochs of the training.
    """

    def __init__(self, module: "torch.nn.Module", folder: Path, epochs: int) -> None:
        import torch

        constraints: Keeps = torch_module.about(folder).get("keeps", {})
        weights = dict(module.named_parameters())
        self.weights = {name: weights[name] for name in constraints}
        # Clustered weights may be sparse as well: zero is then a value that must stay exact.
        self.masks = {
            name: (weights[name] != 0)
            for name, entry in constraints.items()
            if entry["kind"] != "clusters" or bool((weights[name] == 0).any())
        }
        self.gradual = [name for name, entry in constraints.items() if entry["kind"] == "zeros"]
        self.share = {name: 1 - float(self.masks[name].float().mean()) for name in self.gradual}
        # The cluster of each weight, from its value: the clusters are not stored separately.
        self.clusters = {
            name: torch.unique(weights[name].detach(), return_inverse=True)[1].flatten()
            for name, entry in constraints.items()
            if entry["kind"] == "clusters"
        }
        self.final_epoch = (epochs + 1) // 2 if (folder / DENSE).is_file() and self.gradual else 0
        if self.final_epoch:
            from safetensors.torch import load_file

            dense = load_file(folder / DENSE)
            # Training starts dense; ``begin`` brings the sparsity back epoch by epoch.
            with torch.no_grad():
                for name in self.gradual:
                    self.weights[name].copy_(dense[name])
                    self.masks[name].fill_(True)

    def begin(self, epoch: int) -> bool:
        """Apply the sparsity scheduled for an epoch; return whether it is the final one."""
        if 0 < epoch <= self.final_epoch:
            progress = epoch / self.final_epoch
            for name in self.gradual:
                self._prune(name, self.share[name] * (1 - (1 - progress) ** 3))
        return epoch >= self.final_epoch

    def guide(self) -> None:
        """Average the gradients of shared values and mask those of zeros; call before the optimizer step."""
        import torch

        for name, clusters in self.clusters.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.copy_(_means(gradient.flatten(), clusters)[clusters].view_as(gradient))
        for name, mask in self.masks.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.mul_(mask.to(torch.float32))

    def hold(self) -> None:
        """Restore exact zeros and exactly equal shared values; call after the optimizer step."""
        import torch

        # Momentum and weight decay move weights even where their gradient is zero.
        with torch.no_grad():
            for name, clusters in self.clusters.items():
                weight = self.weights[name]
                weight.copy_(_means(weight.flatten(), clusters)[clusters].view_as(weight))
            for name, mask in self.masks.items():
                self.weights[name].mul_(mask)

    def state(self) -> "dict[str, torch.Tensor]":
        """State for ``restore``, in addition to the weights."""
        return dict(self.masks)

    def restore(self, state: "dict[str, torch.Tensor]") -> None:
        """Resume from a ``state``."""
        self.masks = dict(state)

    def _prune(self, name: str, share: float) -> None:
        import torch

        weight = self.weights[name]
        self.masks[name] = smallest(weight.detach(), share).logical_not()
        with torch.no_grad():
            weight.mul_(self.masks[name])


def smallest(weight: "torch.Tensor", share: float) -> "torch.Tensor":
    """Mask of the given fraction of values with the smallest magnitude."""
    import torch

    count = round(share * weight.numel())
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    # A stable sort resolves ties by position, so that the same weights always give the same mask.
    mask[weight.detach().abs().flatten().sort(stable=True).indices[:count]] = True
    return mask.view_as(weight)


def _means(values: "torch.Tensor", clusters: "torch.Tensor") -> "torch.Tensor":
    """Mean value of each cluster, accumulated in float64."""
    import torch

    size = int(clusters.max()) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, clusters, values.double())
    return (sums / torch.bincount(clusters, minlength=size)).to(values.dtype)
