"""How FX graph mode quantization is told what to do for qnnpack, and held to it."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

KERNELS = frozenset({"add", "mul", "cat"})
"""Operators with an int8 kernel: one that reads a value that was int8 was missed."""

KINDS = WEIGHTED | frozenset(torch_to_modules.RECURRENT)

SMALLEST_SCALE = 2**-12
"""The smallest that qnnpack's requantization takes."""


def mapping_of(per_channel: bool, lifted: "GraphModule", exempt: set[str]) -> Any:
    """int8 for all but the layers called ``exempt``, with observers that keep the range they are given."""
    import torch
    from torch.ao import quantization

    activation = quantization.MinMaxObserver.with_args(
        dtype=torch.quint8, reduce_range=False, eps=SMALLEST_SCALE
    )
    kind, scheme = (
        (quantization.PerChannelMinMaxObserver, torch.per_channel_symmetric)
        if per_channel
        else (quantization.MinMaxObserver, torch.per_tensor_symmetric)
    )
    weight = kind.with_args(
        dtype=torch.qint8, qscheme=scheme, quant_min=-127, quant_max=127, eps=SMALLEST_SCALE
    )
    config = quantization.QConfig(activation=activation, weight=weight)
    mapping = quantization.get_default_qconfig_mapping("qnnpack").set_global(config)
    for kind in list(mapping.object_type_qconfigs):
        default = mapping.object_type_qconfigs[kind]
        if default is not None and not _fixed_range(default):
            mapping.set_object_type(kind, config)
    for name, function, place in _activations(lifted, exempt):
        mapping.set_module_name(name, None)
        if function is not None:
            mapping.set_module_name_object_type_order("", function, place, None)
    return mapping


def _activations(lifted: "GraphModule", exempt: set[str]) -> list[tuple[str, Any, int]]:
    """Modules that stay in float, each with the activation that is its only reader and stays as well.

    An activation is told by its function and its place among the calls of that. FX has fused Relus
    with the layer before them by then: they are part of that layer, and do not count.
    """
    import torch
    import torch.nn.functional as F

    fusing = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    modules = dict(lifted.named_modules())

    def fused(node: "Node") -> bool:
        before = node.all_input_nodes[0] if node.target is F.relu else None
        return (
            before is not None
            and before.op == "call_module"
            and isinstance(modules[str(before.target)], fusing)
            and len(before.users) == 1
        )

    places: dict[Any, int] = {}
    place_of: dict[Any, int] = {}
    for node in lifted.graph.nodes:
        if node.op == "call_function" and not fused(node):
            place_of[node] = places.get(node.target, 0)
            places[node.target] = place_of[node] + 1
    found = []
    for node in lifted.graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name.removeprefix(torch_to_modules.PREFIX) in exempt:
            reader = next(iter(node.users)) if len(node.users) == 1 else node
            fits = reader in place_of and reader.target in (F.relu, F.relu6, F.hardtanh)
            found.append((name, reader.target, place_of[reader]) if fits else (name, None, 0))
    return found


def _fixed_range(config: Any) -> bool:
    """Sigmoid, tanh and their like have a range known beforehand."""
    from torch.ao import quantization

    observer = config.activation()
    fixed = getattr(quantization, "FixedQParamsObserver", ())
    return isinstance(observer, fixed) or type(observer).__name__.startswith("FixedQParams")


def value_names(lifted: "GraphModule", prepared: "GraphModule") -> dict[str, str]:
    """What the values of a prepared graph were called before: FX traces anew, and names anew.

    Args:
        lifted: what ``prepare_fx`` was given.
        prepared: what it returned: the same in the same order, with observers between, and with layers
            that have taken over the activation after them and give what that gave.
    """
    from torch.ao.nn.intrinsic import _FusedModule

    modules = dict(prepared.named_modules(remove_duplicate=False))
    fused = {name for name, module in modules.items() if isinstance(module, _FusedModule)}
    readers = {
        str(node.target): next(iter(node.users)) for node in _values(lifted) if str(node.target) in fused
    }
    taken = set(readers.values())
    before = [node for node in _values(lifted) if node not in taken]
    after = [
        node
        for node in _values(prepared)
        if not (node.op == "call_module" and hasattr(modules[str(node.target)], "calculate_qparams"))
    ]
    return {
        new.name: readers[str(new.target)].name if str(new.target) in readers else old.name
        for old, new in zip(before, after, strict=True)
    }


def _values(module: "GraphModule") -> "list[Node]":
    return [node for node in module.graph.nodes if node.op not in ("get_attr", "output")]


def refuse_float(
    lifted: "GraphModule", converted: "GraphModule", exempt: set[str], called: Mapping[str, str]
) -> None:
    """Raise for operators, other than those called ``exempt``, that compute in float and need not.

    ``called`` are the layers' names to users, by those of their nodes.

    Raises:
        StageError: there are some.
    """
    import torch

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    left = []
    modules = dict(converted.named_modules(remove_duplicate=False))
    # Operators that no module stands for keep their order, but not their names.
    names = iter([str(node.name) for node in lifted.graph.nodes if operator_name(node) in KINDS])
    for node in converted.graph.nodes:
        if node.op == "call_module":
            # The quantized modules with a float class as base are the references that no kernel took over.
            if isinstance(modules[str(node.target)], kinds):
                left.append(str(node.target).removeprefix(torch_to_modules.PREFIX))
        elif operator_name(node) in KINDS:
            left.append(next(names))  # aten's own operator, where a quantized layer should be
        elif node.op == "call_function" and _float_call(node, beside_float=bool(exempt)):
            left.append(node.name)
    if left := [called.get(name, name) for name in left if name not in exempt]:
        raise StageError(
            f"int8 was asked for, and these operators would stay in float: {', '.join(left)}",
            fix="FX quantization does not know their pattern; say so with "
            f"layers: {{{left[0]!r}: float32}}, or leave torchscript out for this variant",
        )


def _float_call(node: "Node", *, beside_float: bool) -> bool:
    """Whether an operator with an int8 kernel computes in float although what it reads was int8.

    Where layers are in float on purpose (``beside_float``), so is a sum of their results with others.
    """
    import torch

    names = {operator.add: "add", operator.mul: "mul", torch.cat: "cat"}
    name = names.get(node.target) or operator_name(node)
    if name not in KERNELS:
        return False
    sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
    was_int8 = [source.op == "call_method" and source.target == "dequantize" for source in sources]
    return len(sources) > 0 and (all(was_int8) if beside_float else any(was_int8))
