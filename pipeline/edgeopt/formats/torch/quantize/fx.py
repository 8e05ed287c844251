"""Configuration of FX graph mode quantization for qnnpack, and a check that it quantized every layer."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.quantize.unquantizable import Unquantizable

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

KINDS = WEIGHTED | frozenset(torch_to_modules.RECURRENT)
"""Names of the operators that int8 is required for."""

SMALLEST_SCALE = 2**-12
"""Smallest scale that qnnpack's requantization accepts."""

FIXED = frozenset({"sigmoid", "tanh", "hardsigmoid"})
"""Names of the functions whose outputs have a range that is known in advance."""


def qconfig_mapping(per_channel: bool, float_graph: "GraphModule", exempt: set[str]) -> Any:
    """QConfigMapping with int8 for all layers except ``exempt``, with min-max observers.

    Args:
        per_channel: use one weight scale per output channel instead of one per tensor.
        float_graph: the graph to be prepared, with ``torch.nn`` modules.
        exempt: names of the nodes whose layers stay in float.
    """
    import torch
    from torch.ao import quantization

    activation = _activation()
    kind, scheme = (
        (quantization.PerChannelMinMaxObserver, torch.per_channel_symmetric)
        if per_channel
        else (quantization.MinMaxObserver, torch.per_tensor_symmetric)
    )
    # The grid of ``edgeopt.formats.torch.quantize.grid``: symmetric, without -128.
    weight = kind.with_args(
        dtype=torch.qint8, qscheme=scheme, quant_min=-127, quant_max=127, eps=SMALLEST_SCALE
    )
    config = quantization.QConfig(activation=activation, weight=weight)
    # The kernels of transposed convolutions, in which FX expects the outputs on axis 1, have one scale only.
    whole = quantization.MinMaxObserver.with_args(
        dtype=torch.qint8,
        qscheme=torch.per_tensor_symmetric,
        quant_min=-127,
        quant_max=127,
        eps=SMALLEST_SCALE,
    )
    transposed = quantization.QConfig(activation=activation, weight=whole)
    mapping = quantization.get_default_qconfig_mapping("qnnpack").set_global(config)
    for kind in list(mapping.object_type_qconfigs):
        default = mapping.object_type_qconfigs[kind]
        # Entries by type override the global one, so they are replaced too, except fixed ranges.
        if default is not None and not _fixed_range(default):
            mapping.set_object_type(kind, transposed if kind in _transposed() else config)
    for name, function, index in _activations(float_graph, exempt):
        if name:
            mapping.set_module_name(name, None)
        if function is not None:
            mapping.set_module_name_object_type_order("", function, index, None)
    return mapping


def _activation() -> Any:
    """Constructor of the observers of values between layers."""
    import torch
    from torch.ao.quantization import MinMaxObserver

    return MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=False, eps=SMALLEST_SCALE)


def free_inputs(prepared: "GraphModule") -> None:
    """Give the inputs of operators of a fixed range, such as sigmoid, observers of their own, in place.

    FX quantizes an input that a float operator computes, such as a slice, by the configuration of its reader:
    what enters a sigmoid would be cut off below 0 and above 1.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        observer = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(observer).__name__.startswith("FixedQParams") and _name(node.args[0], modules) not in FIXED:
            prepared.add_submodule(str(node.target), _activation()())


def _name(node: "Node", modules: Mapping[str, Any]) -> str:
    """The operator that a node calls, such as ``sigmoid``."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower()
    return str(getattr(node.target, "__name__", node.target))


def _transposed() -> tuple[type, ...]:
    import torch

    return torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d


def _activations(float_graph: "GraphModule", exempt: set[str]) -> list[tuple[str, Any, int]]:
    """Names of modules that stay in float, each with its activation, which must stay in float as well.

    An activation is identified as FX does: by its function, and its index among the calls of that function.
    ReLUs that FX fuses into the preceding layer are not counted, because fusion precedes the lookup.
    """
    import torch
    import torch.nn.functional as F

    fusing = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    modules = dict(float_graph.named_modules())

    def fused(node: "Node") -> bool:
        source = node.all_input_nodes[0] if node.target is F.relu else None
        return (
            source is not None
            and source.op == "call_module"
            and isinstance(modules[str(source.target)], fusing)
            and len(source.users) == 1
        )

    call_counts: dict[Any, int] = {}
    index_of: dict[Any, int] = {}
    for node in float_graph.graph.nodes:
        if node.op == "call_function" and not fused(node):
            index_of[node] = call_counts.get(node.target, 0)
            call_counts[node.target] = index_of[node] + 1
    exempted = []
    for node in float_graph.graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name.removeprefix(torch_to_modules.PREFIX) in exempt:
            reader = next(iter(node.users)) if len(node.users) == 1 else node
            # Left in int8, the activation would quantize the float output that the recipe asked for.
            is_activation = reader in index_of and reader.target in (F.relu, F.relu6, F.hardtanh)
            exempted.append((name, reader.target, index_of[reader]) if is_activation else (name, None, 0))
        elif node in index_of and node.name in exempt:  # an operator without weights
            exempted.append(("", node.target, index_of[node]))
    return exempted


def _fixed_range(config: Any) -> bool:
    """Whether an operator, such as sigmoid or tanh, has a range that is known in advance."""
    from torch.ao import quantization

    observer = config.activation()
    fixed = getattr(quantization, "FixedQParamsObserver", ())
    return isinstance(observer, fixed) or type(observer).__name__.startswith("FixedQParams")


def value_names(float_graph: "GraphModule", prepared: "GraphModule") -> dict[str, str]:
    """Map node names of a prepared graph to those before preparation, since FX retraces and renames.

    Args:
        float_graph: the argument of ``prepare_fx``.
        prepared: its result, with the same nodes in the same order, plus observers. A layer with a fused
            activation produces the value of that activation.
    """
    from torch.ao.nn.intrinsic import _FusedModule

    modules = dict(prepared.named_modules(remove_duplicate=False))
    fused = {name for name, module in modules.items() if isinstance(module, _FusedModule)}
    readers = {
        str(node.target): next(iter(node.users))
        for node in _value_nodes(float_graph)
        if str(node.target) in fused
    }
    # Fused activations have no node of their own any more; observers are new.
    fused_activations = set(readers.values())
    # What depends on no input is computed while FX traces the graph.
    computed = _computed(float_graph)
    before = [node for node in _value_nodes(float_graph) if node in computed - fused_activations]
    after = [
        node
        for node in _value_nodes(prepared)
        if not (node.op == "call_module" and hasattr(modules[str(node.target)], "calculate_qparams"))
    ]
    return {
        new.name: readers[str(new.target)].name if str(new.target) in readers else old.name
        for old, new in zip(before, after, strict=True)
    }


def _computed(module: "GraphModule") -> "set[Node]":
    """Inputs, and the nodes that depend on one."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _value_nodes(module: "GraphModule") -> "list[Node]":
    return [node for node in module.graph.nodes if node.op not in ("get_attr", "output")]


def refuse_float(
    float_graph: "GraphModule", converted: "GraphModule", exempt: set[str], called: Mapping[str, str]
) -> None:
    """Check that no operator except ``exempt`` was left in float.

    Args:
        float_graph: the graph before quantization.
        converted: the result of ``convert_fx``.
        exempt: names of the nodes that stay in float on request.
        called: node name -> the layer's name for messages.

    Raises:
        Unquantizable: FX quantization left operators in float.
    """
    import torch

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear, *_transposed())
    in_float = []
    modules = dict(converted.named_modules(remove_duplicate=False))
    # Operators without a module keep their order, but not their names.
    names = iter([str(node.name) for node in float_graph.graph.nodes if operator_name(node) in KINDS])
    for node in converted.graph.nodes:
        if node.op == "call_module":
            # Reference modules, for which no quantized kernel was found, inherit from the float classes.
            if isinstance(modules[str(node.target)], kinds):
                in_float.append(str(node.target).removeprefix(torch_to_modules.PREFIX))
        elif operator_name(node) in KINDS:
            in_float.append(next(names))  # an ATen operator where a quantized layer is expected
        elif node.op == "call_function" and _float_call(node, beside_float=bool(exempt)):
            in_float.append(node.name)
    if in_float := [called.get(name, name) for name in in_float if name not in exempt]:
        layers = [name for name in in_float if name in called.values()] or in_float[:1]
        raise Unquantizable(layers, "FX quantization does not support their pattern", "torchscript", in_float)


def _float_call(node: "Node", *, beside_float: bool) -> bool:
    """Whether an operator with an int8 kernel computes in float, by mistake, although its inputs were int8.

    With layers in float on request (``beside_float``), an operator may read both: then all inputs count.
    """
    import torch

    # ATen operators of these names are those that ``to_modules`` left, such as arithmetic of integers.
    if node.target not in (operator.add, operator.mul, torch.cat):
        return False
    sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
    was_int8 = [source.op == "call_method" and source.target == "dequantize" for source in sources]
    return len(sources) > 0 and (all(was_int8) if beside_float else any(was_int8))
