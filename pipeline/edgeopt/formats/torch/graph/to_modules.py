"""Conversion of a graph in the plain form to the ``torch.nn`` modules that FX quantization expects."""

import operator
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.operators import LAYERS, TRANSPOSED, operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

PREFIX = "layer_"
"""Prefix of a module's name, before that of the node that it replaces."""

RECURRENT = {"lstm": "LSTM", "gru": "GRU"}


def with_modules(graph: "GraphModule", *, recurrent: bool = False) -> "GraphModule":
    """Rewrite a graph in the plain form with the modules and functions that FX quantization matches.

    Convolutions and linear layers with constant weights become ``torch.nn`` modules, and so do LSTM and GRU
    if ``recurrent`` is set. The outputs stay the same.
    """
    import torch

    root = torch.nn.Module()
    result = torch.fx.Graph()
    known: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            result.output(torch.fx.map_arg(node.args[0], lambda old: known[old]))
        elif node.op == "get_attr":
            if not hasattr(root, node.target):
                root.register_buffer(node.target, getattr(graph, node.target))
            known[node] = result.get_attr(node.target)
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda old: known[old])
            layer = _layer(node, graph) or (recurrent_module(node, graph) if recurrent else None)
            if layer is not None:
                name = f"{PREFIX}{node.name}"
                root.add_module(name, layer)
                known[node] = result.call_module(name, module_inputs(node, args))
            elif is_final_state(node) and known[node.args[0]].op == "call_module":
                known[node] = final_state(result, known[node.args[0]], node.args[1])
            else:
                target, args, kwargs = _function(node, args, kwargs)
                known[node] = result.create_node("call_function", target, args, kwargs, name=node.name)
        else:
            known[node] = result.node_copy(node, lambda old: known[old])
    module = torch.fx.GraphModule(root, result)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers(recurse=False) if name not in used]:
        delattr(module, name)  # export writes all buffers of a module, used or not
    module.recompile()
    return module.eval()


def is_float32(node: "Node") -> bool:
    """Whether an operator reads and computes float32 only: arithmetic of integers is never quantized.

    An operator of unknown type counts as float32.
    """
    import torch

    values = [known.meta.get("tensor_meta") for known in (node, *node.all_input_nodes)]
    return all(getattr(value, "dtype", torch.float32) == torch.float32 for value in values)


def _layer(node: "Node", graph: "GraphModule") -> "torch.nn.Module | None":
    """Build the module of a convolution or linear layer with constant weights; None for other nodes."""
    import torch

    name = operator_name(node)
    if name not in LAYERS | TRANSPOSED or any(
        getattr(arg, "op", "get_attr") != "get_attr" for arg in node.args[1:3] if arg
    ):
        return None
    weight = getattr(graph, node.args[1].target)
    bias = getattr(graph, node.args[2].target) if len(node.args) > 2 and node.args[2] else None
    layer: Any
    if name in TRANSPOSED:
        layer = _transposed_convolution(node, weight, bias is not None)
    elif name == "linear":
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    else:
        stride, padding, dilation, groups = node.args[3:7]
        kinds = {"conv1d": torch.nn.Conv1d, "conv2d": torch.nn.Conv2d, "conv3d": torch.nn.Conv3d}
        layer = kinds[name](
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_tuple(stride, weight.dim() - 2),
            padding=padding if isinstance(padding, str) else _tuple(padding, weight.dim() - 2),
            dilation=_tuple(dilation, weight.dim() - 2),
            groups=groups,
            bias=bias is not None,
        )
    layer.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer.eval()


def _transposed_convolution(node: "Node", weight: Any, has_bias: bool) -> Any:
    import torch

    rank = weight.dim() - 2
    values: list[Any] = [[1], [0], [0], 1, [1]]
    values[: len(node.args[3:])] = node.args[3:]
    stride, padding, extra, groups, dilation = values
    kinds: dict[int, Any] = {
        1: torch.nn.ConvTranspose1d,
        2: torch.nn.ConvTranspose2d,
        3: torch.nn.ConvTranspose3d,
    }
    return kinds[rank](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        stride=_tuple(stride, rank),
        padding=_tuple(padding, rank),
        output_padding=_tuple(extra, rank),
        groups=groups,
        bias=has_bias,
        dilation=_tuple(dilation, rank),
    )


def module_inputs(node: "Node", args: Any) -> tuple[Any, ...]:
    """Arguments of a layer's module: a recurrent one also takes its initial states, an LSTM as a pair."""
    kind = operator_name(node)
    if kind not in RECURRENT:
        return (args[0],)
    return (args[0], tuple(args[1]) if kind == "lstm" else args[1])


def is_final_state(node: "Node") -> bool:
    """Whether a node is a final state of an LSTM, rather than its outputs."""
    return operator_name(node) == "getitem" and operator_name(node.args[0]) == "lstm" and node.args[1] != 0


def final_state(result: "torch.fx.Graph", layer: "Node", index: Any) -> "Node":
    """A final state of an LSTM: the operator returns three values, the module an output and a pair."""
    pair = result.call_function(operator.getitem, (layer, 1))
    return result.call_function(operator.getitem, (pair, index - 1))


def recurrent_module(node: "Node", graph: "GraphModule") -> "torch.nn.Module | None":
    """Build the module of an ``aten.lstm.input`` or ``aten.gru.input`` with constant weights."""
    import torch

    kind = RECURRENT.get(operator_name(node))
    if kind is None or getattr(node.target, "_overloadname", "") != "input":
        return None
    constants, has_biases, count, _, _, bidirectional, batch_first = node.args[2:9]
    if any(constant.op != "get_attr" for constant in constants):
        return None
    weights = [graph.get_buffer(str(constant.target)) for constant in constants]
    layer: Any = getattr(torch.nn, kind)(
        input_size=weights[0].shape[1],
        hidden_size=weights[1].shape[1],
        num_layers=count,
        bidirectional=bidirectional,
        batch_first=batch_first,
    )
    # Quantized modules always have biases, which are 0 if the layer has none.
    each = 4 if has_biases else 2
    given = [parameter for place, parameter in enumerate(layer._flat_weights) if place % 4 < each]
    if len(given) != len(weights):
        return None  # an LSTM with projections has further weights
    with torch.no_grad():
        for parameter in layer._flat_weights:
            parameter.zero_()
        # The operator takes its weights in the order of the module's own flat list.
        for parameter, weight in zip(given, weights, strict=True):
            parameter.copy_(weight)
    return layer.eval()


def _tuple(values: Any, rank: int) -> tuple[int, ...]:
    return tuple(values) * rank if len(values) == 1 else tuple(values)


def _function(node: "Node", args: Any, kwargs: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function that FX quantization matches in place of an ATen operator, or the operator itself."""
    import torch
    import torch.nn.functional as F

    name = operator_name(node)
    if not is_float32(node):
        return node.target, args, dict(kwargs)
    # FX quantization matches by function identity: it knows torch's functions, not ATen overloads.
    if name in ("add", "mul") and len(args) == 2 and not kwargs:
        return (operator.add if name == "add" else operator.mul), args, {}
    same: dict[str, Any] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "hardtanh": F.hardtanh,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "leaky_relu": F.leaky_relu,
        "elu": F.elu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "cat": torch.cat,
        "reshape": torch.reshape,
        "permute": torch.permute,
        "mean": torch.mean,
        "avg_pool2d": F.avg_pool2d,
        "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
        "clamp": torch.clamp,
    }
    # ReLU6 is often exported as a clamp with two bounds; the quantization rules look for hardtanh.
    if name == "clamp" and len(args) == 3 and args[1] is not None and args[2] is not None:
        return F.hardtanh, args, {}
    if name in ("max_pool2d", "max_pool1d"):
        pool = F.max_pool2d if name == "max_pool2d" else F.max_pool1d
        return pool, args, {}
    if name == "constant_pad_nd":
        return F.pad, (args[0], tuple(args[1]), "constant", args[2] if len(args) > 2 else 0.0), {}
    if name == "slice":
        rank = int(args[1]) if len(args) > 1 else 0
        start, stop, step = (*args[2:5], *(None,) * (5 - len(args)))[:3]
        # Export writes an open end as INT64_MAX.
        stop = None if stop is not None and stop >= 2**62 else stop
        leading = (slice(None),) * rank
        return operator.getitem, (args[0], (*leading, slice(start, stop, step))), {}
    if name in same:
        return same[name], args, dict(kwargs)
    return node.target, args, dict(kwargs)
