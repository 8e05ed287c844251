"""Structured pruning of a PyTorch module: dependency groups of channels, and their removal.

Layers that share channels (through sums, concatenations, depthwise convolutions) form a group: Fang et
al. 2023, "DepGraph" (arXiv:2301.12900), implemented by torch-pruning. Its graph does not contain the Python
code between layers, such as shortcuts padded with a fixed number of channels. Each group is therefore
verified: the module without some channels must produce the outputs of the whole module with the weights
that read these channels set to zero.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.formats.torch.files.module import Resized, sizes_of
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.prune.counting import is_depthwise, weighted
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch

BROKEN = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, KeyError, AttributeError)
"""Exceptions of a module, or of torch-pruning, when layers no longer fit together."""

TOLERANCE = 1e-3
"""Largest difference of the outputs in the verification, relative to the largest output."""


class Group(NamedTuple):
    """Channels that can only be removed together, named after the first layer that produces them."""

    name: str
    channels: int
    producers: dict[str, list[int]]
    """Layers that produce the channels, including normalizations -> their output for each channel."""
    readers: dict[str, list[tuple[int, int]]]
    """Layers that read the channels -> pairs of a channel and the index of the layer's input."""


class Fixed(NamedTuple):
    """A layer whose channels cannot be removed, with the reason."""

    name: str
    reason: str


def groups(
    module: "torch.nn.Module", inputs: Sequence[TensorSpec], round_to: int
) -> tuple[list[Group], list[Fixed]]:
    """Find the groups of removable channels.

    Args:
        module: the module, which stays unchanged.
        inputs: its input specs.
        round_to: number of channels that the verification of a group removes.

    Returns:
        The groups that passed the verification, and the layers that cannot lose channels.
    """
    verified: list[Group] = []
    fixed: list[Fixed] = []
    seen: set[str] = set()
    for name, layer in weighted(module).items():
        # A depthwise layer belongs to the group of the layer that produces its inputs.
        if name in seen or is_depthwise(layer):
            continue
        try:
            group = _group(module, name, inputs)
        except BROKEN as error:
            fixed.append(Fixed(name, torch_engine.brief(error, 1)))
            continue
        seen.update(group.producers)
        reason = _verify(module, group, inputs, min(round_to, group.channels - 1))
        if reason:
            fixed += [Fixed(producer, reason) for producer in group.producers if producer in weighted(module)]
        else:
            verified.append(group)
    return verified, fixed


def remove(
    module: "torch.nn.Module", inputs: Sequence[TensorSpec], chosen: Mapping[str, Sequence[int]]
) -> Resized:
    """Remove channels in place.

    Args:
        module: the module to prune.
        inputs: its input specs.
        chosen: group name -> indices of the channels to remove.

    Returns:
        The new sizes of all layers that changed.
    """
    before = {name: (sizes_of(layer), _shapes(layer)) for name, layer in module.named_modules()}
    for name, indices in chosen.items():
        if indices:
            # The dependency graph refers to tensors of the old shapes, so every group needs a new one.
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
    """The pruning group of torch-pruning for some output channels of a layer."""
    return _finder(module, name, inputs)(indices)


def _finder(module: "torch.nn.Module", name: str, inputs: Sequence[TensorSpec]) -> Callable[[list[int]], Any]:
    """A function that finds the pruning group for some output channels of a layer."""
    import torch

    with torch_engine.quiet(), torch.enable_grad():  # torch-pruning traces the autograd graph
        import torch_pruning

        example = tuple(
            torch.zeros([1, *spec.shape[1:]], dtype=getattr(torch, spec.dtype)) for spec in inputs
        )
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
        layer = module.get_submodule(name)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        return lambda indices: graph.get_pruning_group(layer, prune, idxs=indices)


def _group(module: "torch.nn.Module", name: str, inputs: Sequence[TensorSpec]) -> Group:
    layer = module.get_submodule(name)
    channels = getattr(layer, "out_channels", None) or layer.out_features
    names = {inner: inner_name for inner_name, inner in module.named_modules()}
    find = _finder(module, name, inputs)
    producers: dict[str, list[int]] = {}
    readers: dict[str, list[tuple[int, int]]] = {}
    unclear: set[str] = set()
    for target, is_producer, indices in _targets(find(list(range(channels))), names):
        # Recent versions of torch-pruning return hybrid indices: own position and that in the root layer.
        plain = [getattr(index, "idx", index) for index in indices]
        if is_producer:
            producers[target] = producers.get(target, []) + plain
        else:
            origins = [getattr(index, "root_idx", index) for index in indices]
            if max(origins, default=0) >= channels:
                unclear.add(target)
            readers.setdefault(target, []).extend(zip(origins, plain, strict=True))
    # After a concatenation, root indices count from its first channel, and a layer may read a channel several
    # times, or several values of it: the group of a single channel lists its inputs.
    readers |= {target: [] for target in unclear}
    for channel in range(channels) if unclear else ():
        for target, is_producer, indices in _targets(find([channel]), names):
            if target in unclear and not is_producer:
                readers[target] += [(channel, getattr(index, "idx", index)) for index in indices]
    return Group(name, channels, producers, readers)


def _targets(group: Any, names: Mapping[Any, str]) -> Iterator[tuple[str, bool, Sequence[Any]]]:
    """The layers of a pruning group: name, whether it produces the channels, and indices in the layer."""
    for dependency, indices in group:
        target = names.get(dependency.target.module)
        if target is not None:  # otherwise an operator without parameters
            yield target, "out" in dependency.handler.__name__, indices


def _verify(module: "torch.nn.Module", group: Group, inputs: Sequence[TensorSpec], count: int) -> str:
    """Remove the first channels of a group from a copy; return why they cannot be removed, or ''."""
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
    pruned, reference = copy.deepcopy(module).eval(), copy.deepcopy(module).eval()
    with torch.no_grad(), torch_engine.one_thread():
        original = _all(module.eval()(*values))
        try:
            pruning_group = _graph_group(pruned, group.name, inputs, list(range(count)))
            names = {inner: name for name, inner in pruned.named_modules()}
            for dependency, indices in pruning_group:
                target = names.get(dependency.target.module)
                if target is not None and "in" in dependency.handler.__name__.split("_"):
                    _zero_inputs(reference.get_submodule(target), [getattr(i, "idx", i) for i in indices])
            pruning_group.prune()
            actual = _all(pruned(*values))
        except BROKEN as error:
            return torch_engine.brief(error, 1)
        if [value.shape for value in actual] != [value.shape for value in original]:
            return OUTPUT
        for found, expected in zip(actual, _all(reference(*values)), strict=True):
            scale = float(expected.abs().max()) + 1e-6
            # Negated, so that NaN counts as a difference.
            if not float((found - expected).abs().max()) <= TOLERANCE * scale:
                return "the outputs change by more than these channels contribute"
    return ""


OUTPUT = "its channels are the model's outputs"
"""The one reason that is expected, and not worth a note."""


def _zero_inputs(layer: Any, indices: list[int]) -> None:
    """Set the weights that read the given input channels to zero."""
    import torch

    axis = 0 if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd) else 1
    layer.weight.index_fill_(axis, torch.tensor(indices), 0.0)


def _all(outputs: Any) -> list[Any]:
    """All outputs, as real numbers."""
    from torch.utils import _pytree

    return [value.double() for value in _pytree.tree_leaves(outputs)]
