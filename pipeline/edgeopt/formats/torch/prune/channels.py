"""Which channels of a PyTorch module can be removed together, and removing them.

Layers that share channels (through sums, concatenations, depthwise convolutions) form a group: Fang et
al. 2023, "DepGraph" (arXiv:2301.12900), here by way of torch-pruning. Its graph does not see what code
does between layers, such as shortcuts padded with a fixed number of channels. So each group is tried: the
module without a channel must give what the whole module gives when nothing reads that channel.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.files.module import Resized, sizes_of
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.prune.counting import is_depthwise, weighted
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch

BROKEN = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, KeyError, AttributeError)
"""What a module raises, or torch-pruning in it, when its layers no longer fit together."""

TOLERANCE = 1e-3


class Group(NamedTuple):
    """Channels that can only be removed together, called after the first layer that makes them."""

    name: str
    channels: int
    makers: dict[str, list[int]]
    """Layers that make the channels, normalization included -> which of their outputs, channel by channel."""
    readers: dict[str, list[tuple[int, int]]]
    """Layers that read the channels -> pairs of a channel and an input of the layer that it is read by."""


class Fixed(NamedTuple):
    """A layer whose channels must stay, and why."""

    name: str
    reason: str


def groups(
    module: "torch.nn.Module", inputs: Sequence[TensorSpec], round_to: int
) -> tuple[list[Group], list[Fixed]]:
    """All groups of channels that can be removed, and the layers that must stay as they are."""
    found: list[Group] = []
    fixed: list[Fixed] = []
    seen: set[str] = set()
    for name, layer in weighted(module).items():
        if name in seen or is_depthwise(layer):
            continue
        try:
            group = _group(module, name, inputs)
        except BROKEN as error:
            fixed.append(Fixed(name, torch_engine.brief(error, 1)))
            continue
        seen.update(group.makers)
        reason = _try(module, group, inputs, min(round_to, group.channels - 1))
        if reason:
            fixed += [Fixed(maker, reason) for maker in group.makers if maker in weighted(module)]
        else:
            found.append(group)
    return found, fixed


def remove(
    module: "torch.nn.Module", inputs: Sequence[TensorSpec], chosen: Mapping[str, Sequence[int]]
) -> Resized:
    """Remove channels (name of a group -> indices) in place; the new sizes of all layers that changed."""
    before = {name: (sizes_of(layer), _shapes(layer)) for name, layer in module.named_modules()}
    for name, indices in chosen.items():
        if indices:
            _graph_group(module, name, inputs, sorted(indices)).prune()
    return {
        name: sizes_of(layer)
        for name, layer in module.named_modules()
        if before[name] != (sizes_of(layer), _shapes(layer))
    }


def _shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return {key: tuple(value.shape) for key, value in tensors}


def _graph_group(
    module: "torch.nn.Module", name: str, inputs: Sequence[TensorSpec], indices: list[int]
) -> Any:
    import torch

    with torch_engine.quiet(), torch.enable_grad():  # it follows the graph of gradients
        import torch_pruning

        example = tuple(
            torch.zeros([1, *spec.shape[1:]], dtype=getattr(torch, spec.dtype)) for spec in inputs
        )
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
        layer = module.get_submodule(name)
        return graph.get_pruning_group(
            layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=indices
        )


def _group(module: "torch.nn.Module", name: str, inputs: Sequence[TensorSpec]) -> Group:
    layer = module.get_submodule(name)
    channels = getattr(layer, "out_channels", None) or layer.out_features
    names = {inner: inner_name for inner_name, inner in module.named_modules()}
    makers: dict[str, list[int]] = {}
    readers: dict[str, list[tuple[int, int]]] = {}
    for dependency, indices in _graph_group(module, name, inputs, list(range(channels))):
        target = names.get(dependency.target.module)
        if target is None:
            continue  # an operator without parameters
        plain = [getattr(index, "idx", index) for index in indices]
        if "out" in dependency.handler.__name__:
            makers[target] = makers.get(target, []) + plain
        else:
            origins = [getattr(index, "root_idx", index) for index in indices]
            if max(origins, default=0) >= channels:
                # Behind a concatenation they count from its first channel; their order stays.
                origins = [place * channels // len(plain) for place in range(len(plain))]
            readers.setdefault(target, []).extend(zip(origins, plain, strict=True))
    return Group(name, channels, makers, readers)


def _try(module: "torch.nn.Module", group: Group, inputs: Sequence[TensorSpec], count: int) -> str:
    """Remove the first channels of a group from a copy; the reason why that cannot be, or ''."""
    import torch

    if count < 1:
        return "it has a single channel"
    generator = torch.Generator().manual_seed(0)
    values = tuple(
        torch.randn([2, *spec.shape[1:]], generator=generator)
        if spec.dtype.startswith("float")
        else torch.zeros([2, *spec.shape[1:]], dtype=getattr(torch, spec.dtype))
        for spec in inputs
    )
    pruned, silenced = copy.deepcopy(module).eval(), copy.deepcopy(module).eval()
    with torch.no_grad(), torch_engine.one_thread():
        wanted = _first(module.eval()(*values))
        try:
            found = _graph_group(pruned, group.name, inputs, list(range(count)))
            names = {inner: name for name, inner in pruned.named_modules()}
            for dependency, indices in found:
                target = names.get(dependency.target.module)
                if target is not None and "in" in dependency.handler.__name__.split("_"):
                    _silence(silenced.get_submodule(target), [getattr(i, "idx", i) for i in indices])
            found.prune()
            got = _first(pruned(*values))
        except BROKEN as error:
            return torch_engine.brief(error, 1)
        if got.shape != wanted.shape:
            return OUTPUT
        expected = _first(silenced(*values))
        scale = float(expected.abs().max()) + 1e-6
        if not float((got - expected).abs().max()) <= TOLERANCE * scale:
            return "the network computes something else without some of its channels"
    return ""


OUTPUT = "its channels are the model's outputs"
"""The reason that needs no telling."""


def _silence(layer: Any, indices: list[int]) -> None:
    """Let a layer no longer read these inputs."""
    import torch

    axis = 0 if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd) else 1
    layer.weight.index_fill_(axis, torch.tensor(indices), 0.0)


def _first(outputs: Any) -> Any:
    from torch.utils import _pytree

    return _pytree.tree_leaves(outputs)[0]
