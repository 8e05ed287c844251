"""What training must keep of a PyTorch module's weights: zeros, patterns of zeros, shared values.

``model.json`` names the weights under ``keeps``, each with its ``kind``. The pattern itself is read off the
stored weights: what is zero stays zero, what is equal stays equal. For ``zeros`` the weights from before
lie in ``dense.safetensors``, so that training can go there step by step.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt.formats.torch.files import module as torch_module

if TYPE_CHECKING:
    import torch

Keeps: TypeAlias = dict[str, dict[str, Any]]
"""Name of a weight -> ``{"kind": "zeros" | "n_m" | "clusters"}``."""

DENSE = "dense.safetensors"


class Keeper:
    """Holds the weights of a module to what ``model.json`` says, while it is trained.

    Zeros come by the cubic schedule of Zhu and Gupta 2017 (arXiv:1710.01878) over the first half of the
    epochs, the weights smallest by then each time. Shared values move together, by the mean of their
    gradients (Han et al. 2016, arXiv:1510.00149, with the mean in place of the sum).
    """

    def __init__(self, module: "torch.nn.Module", folder: Path, epochs: int) -> None:
        import torch

        described: Keeps = torch_module.about(folder).get("keeps", {})
        weights = dict(module.named_parameters())
        self.weights = {name: weights[name] for name in described}
        self.masks = {
            name: (weights[name] != 0)
            for name, kept in described.items()
            if kept["kind"] != "clusters" or bool((weights[name] == 0).any())
        }
        self.gradual = [name for name, kept in described.items() if kept["kind"] == "zeros"]
        self.share = {name: 1 - float(self.masks[name].float().mean()) for name in self.gradual}
        self.places = {
            name: torch.unique(weights[name].detach(), return_inverse=True)[1].flatten()
            for name, kept in described.items()
            if kept["kind"] == "clusters"
        }
        self.settled_at = (epochs + 1) // 2 if (folder / DENSE).is_file() and self.gradual else 0
        if self.settled_at:
            from safetensors.torch import load_file

            dense = load_file(folder / DENSE)
            with torch.no_grad():
                for name in self.gradual:
                    self.weights[name].copy_(dense[name])
                    self.masks[name].fill_(True)

    def begin(self, epoch: int) -> bool:
        """Bring in the zeros due by this epoch; whether all of them are there."""
        if 0 < epoch <= self.settled_at:
            progress = epoch / self.settled_at
            for name in self.gradual:
                self._thin(name, self.share[name] * (1 - (1 - progress) ** 3))
        return epoch >= self.settled_at

    def guide(self) -> None:
        """Between the gradients and the step: shared values get a shared gradient."""
        import torch

        for name, places in self.places.items():
            slope = self.weights[name].grad
            if slope is not None:
                slope.copy_(_means(slope.flatten(), places)[places].view_as(slope))
        for name, mask in self.masks.items():
            slope = self.weights[name].grad
            if slope is not None:
                slope.mul_(mask.to(torch.float32))

    def hold(self) -> None:
        """After the step: what must be zero is zero, what must be equal is equal to the last bit."""
        import torch

        with torch.no_grad():
            for name, places in self.places.items():
                weight = self.weights[name]
                weight.copy_(_means(weight.flatten(), places)[places].view_as(weight))
            for name, mask in self.masks.items():
                self.weights[name].mul_(mask)

    def state(self) -> "dict[str, torch.Tensor]":
        """What ``restore`` needs, beside the weights."""
        return dict(self.masks)

    def restore(self, state: "dict[str, torch.Tensor]") -> None:
        """Take up an earlier ``state``."""
        self.masks = dict(state)

    def _thin(self, name: str, share: float) -> None:
        import torch

        weight = self.weights[name]
        self.masks[name] = smallest(weight.detach(), share).logical_not()
        with torch.no_grad():
            weight.mul_(self.masks[name])


def smallest(weight: "torch.Tensor", share: float) -> "torch.Tensor":
    """Mask of the ``share`` of values with the smallest magnitude."""
    import torch

    count = round(share * weight.numel())
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    # A stable sort: the same weights give the same mask, whatever is equal in them.
    mask[weight.detach().abs().flatten().sort(stable=True).indices[:count]] = True
    return mask.view_as(weight)


def _means(values: "torch.Tensor", places: "torch.Tensor") -> "torch.Tensor":
    import torch

    size = int(places.max()) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, places, values.double())
    return (sums / torch.bincount(places, minlength=size)).to(values.dtype)
