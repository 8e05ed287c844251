"""Recurrent layers as one loop per layer and direction, for runtimes without a recurrent operator.

A graph in the plain form contains ``aten.lstm.input`` and its kin: one operator for a stack of layers. A
converter without them unrolls the steps: one copy of the cell for each. Here each layer becomes

- a linear layer ``NAME/input_l0``, which multiplies the inputs of all steps at once, and
- a `step_loop`, layer ``NAME/hidden_l0``, of which only the product with the hidden state depends on the
  step before.

Weights and their order of gates stay those of PyTorch: input, forget, cell, output for an LSTM; reset,
update, new for a GRU.
"""

import operator
import re
from collections.abc import Container
from functools import cache
from typing import TYPE_CHECKING, Any

from edgeopt.formats.layer_names import calls
from edgeopt.formats.torch.graph.layers import INSIDE, ROOT
from edgeopt.formats.torch.graph.operators import operator_name

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Recurrent operators, and the number of matrices ``[hidden, hidden]`` that the weight of one is made of."""
STEP_LOOP = "edgeopt.step_loop.default"
"""Name of `step_loop` in a graph."""
RECURRENT = frozenset({*GATES, STEP_LOOP})
WIDENED = (
    "recurrent layers run as loops: the product with the inputs is int8, that with the hidden state has int8 "
    "weights, which are widened to float once per inference"
)
"""Note on int8 in ExecuTorch."""
INT8_MAX = 127
_FIRST_WEIGHT = re.compile(r"(_?weight_ih_l0|(___\w+_cell)?_kernel(_\d+)?)$")
"""What follows the name of the layer in that of its first weight, in PyTorch and in Keras."""


@cache
def step_loop() -> Any:
    """The operator ``edgeopt::step_loop``, registered on the first call: all steps of one recurrent layer.

    ``(projected, weight, bias, hidden, cell, kind, reverse) -> (outputs, hidden, cell)``, where
    ``projected`` is ``[steps, batch, gates * size]``, the product of the inputs with their own weights;
    ``weight`` is ``[gates * size, size]``; states are ``[batch, size]``; ``outputs`` are
    ``[steps, batch, size]``. ``kind`` is a key of `GATES`; only an LSTM changes ``cell``.
    """
    import torch
    from torch import Tensor

    def run(
        projected: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        hidden: Tensor,
        cell: Tensor,
        kind: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps = projected.unbind(0)
        outputs = []
        for step in reversed(steps) if reverse else steps:
            product = torch.nn.functional.linear(hidden, weight, bias)
            hidden, cell = next_states(step, product, hidden, cell, kind)
            outputs.append(hidden)
        # An operator must not return its arguments.
        return torch.stack(outputs[::-1] if reverse else outputs), hidden.clone(), cell.clone()

    def shapes(
        projected: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        hidden: Tensor,
        cell: Tensor,
        kind: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        states = torch.empty_like(hidden), torch.empty_like(cell)
        return hidden.new_empty((projected.shape[0], *hidden.shape)), *states

    custom = torch.library.custom_op("edgeopt::step_loop", run, mutates_args=())
    custom.register_fake(shapes)
    return torch.ops.edgeopt.step_loop.default


def next_states(
    projected: "torch.Tensor",
    product: "torch.Tensor",
    hidden: "torch.Tensor",
    cell: "torch.Tensor",
    kind: str,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """One step of the recurrent layer of `step_loop`: the next hidden and cell state.

    ``projected`` and ``product``, both ``[batch, gates * size]``, stem from the input and from ``hidden``.
    """
    import torch

    if kind == "gru":
        size = hidden.shape[-1]
        gates = torch.sigmoid(projected[..., : 2 * size] + product[..., : 2 * size])
        reset, update = gates.chunk(2, -1)
        new = torch.tanh(projected[..., 2 * size :] + reset * product[..., 2 * size :])
        return new + update * (hidden - new), cell
    total = projected + product
    if kind == "lstm":
        enter, forget, new, leave = total.chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        return torch.sigmoid(leave) * torch.tanh(cell), cell
    return (torch.tanh(total) if kind == "rnn_tanh" else torch.relu(total)), cell


def scanned(
    projected: "torch.Tensor",
    transposed: "torch.Tensor",
    bias: "torch.Tensor | None",
    hidden: "torch.Tensor",
    cell: "torch.Tensor",
    kind: str,
    reverse: bool,
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """`step_loop` as ``torch.scan``, which ExecuTorch runs as a loop over one copy of the cell.

    The weight is transposed, ``[size, gates * size]``: otherwise each step would transpose it.
    """
    import torch
    from torch._higher_order_ops.scan import scan

    def step(states: "list[torch.Tensor]", each: "torch.Tensor") -> Any:
        product = torch.mm(states[0], transposed)
        product = product if bias is None else product + bias
        states = list(next_states(each, product, states[0], states[-1], kind))[: len(states)]
        return states, states[0].clone()

    # States may be views of one input, and a scan takes no two tensors of the same memory.
    start = [hidden.clone(), cell.clone()] if kind == "lstm" else [hidden]
    states, outputs = scan(step, start, projected, reverse=reverse)
    return outputs, states[0], states[-1]


def to_scans(graph: "GraphModule", int8: Container[str] = ()) -> None:
    """Replace each `step_loop` of a graph, in place, by `scanned`.

    Args:
        graph: the graph.
        int8: names of the nodes whose weights become symmetric int8, one scale per output. They are
            widened to float once per inference, before the first step.
    """
    import torch

    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if operator_name(node) != STEP_LOOP:
            continue
        node.target = scanned
        name = str(node.args[1].target)
        weight = graph.get_buffer(name).t().contiguous()
        with graph.graph.inserting_before(node):
            if node.name not in int8:
                graph.register_buffer(f"{name}_transposed", weight)
                stored = graph.graph.get_attr(f"{name}_transposed")
            else:
                scale = weight.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny) / INT8_MAX
                graph.register_buffer(f"{name}_int8", (weight / scale).round().to(torch.int8))
                graph.register_buffer(f"{name}_scale", scale)
                stored, factor = (graph.graph.get_attr(f"{name}_{part}") for part in ("int8", "scale"))
                wide = graph.graph.call_function(aten._to_copy.default, (stored,), {"dtype": torch.float32})
                stored = graph.graph.call_function(aten.mul.Tensor, (wide, factor))
        node.args = (node.args[0], stored, *node.args[2:])
    remove_unused(graph)


def remove_unused(graph: "GraphModule") -> None:
    """Remove nodes and constants without readers, and compile the graph."""
    graph.graph.eliminate_dead_code()
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in graph.named_buffers(recurse=False) if name not in used]:
        delattr(graph, name)
    graph.recompile()


def with_loops(graph: "GraphModule") -> "GraphModule":
    """Rewrite the recurrent operators of a graph in the plain form; the outputs stay the same.

    Args:
        graph: the graph, which stays unchanged.

    Returns:
        The new graph, with a `step_loop` per layer and direction; the argument itself if it has no recurrent
        operator. An LSTM with projections stays as it is: its hidden and its cell state differ in size.
    """
    import torch

    if not any(_weights(node) for node in graph.graph.nodes):
        return graph
    root = torch.nn.Module()
    result = torch.fx.Graph()
    for name, constant in graph.named_buffers():
        root.register_buffer(name, constant)
    known: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        if weights := _weights(node):
            known[node] = _Expansion(node, known, result, root).run(weights)
        elif node.op == "call_function" and node.target is operator.getitem and node.args[0] in known:
            source = known[node.args[0]]
            is_layer = isinstance(source, tuple)
            known[node] = source[node.args[1]] if is_layer else result.node_copy(node, known.__getitem__)
        else:
            known[node] = result.node_copy(node, known.__getitem__)
    module = torch.fx.GraphModule(root, result)
    remove_unused(module)
    return module.eval()


def layer_names(graph: "GraphModule") -> list[str]:
    """Names of the layers of all recurrent operators, in order: ``NAME``, or in a stack ``NAME/l0``."""
    names = []
    for node in graph.graph.nodes:
        if operator_name(node) in GATES:
            base = stack_name(node) or str(node.name)
            count = int(node.args[4])
            names += [base] if count == 1 else [f"{base}/l{layer}" for layer in range(count)]
    return calls(names)


def stack_name(node: "Node") -> str:
    """The name of a recurrent operator in the source model; empty if its weights do not contain it."""
    first = node.args[2][0]  # all weights are in one list
    name = str(first.target) if first.op == "get_attr" else ""
    base = _FIRST_WEIGHT.sub("", name)
    return "" if base == name else base.removeprefix(ROOT).replace(INSIDE, "/")


def _base(node: "Node") -> str:
    return ROOT + (stack_name(node) or str(node.name)).replace("/", INSIDE)


def _weights(node: "Node") -> list[Any]:
    """The constants of a recurrent operator that can be rewritten; empty for other nodes."""
    kind = operator_name(node)
    if kind not in GATES or getattr(node.target, "_overloadname", "") != "input":
        return []
    constants, has_biases, layers, _, _, bidirectional, _ = node.args[2:9]
    expected = int(layers) * (2 if bidirectional else 1) * (4 if has_biases else 2)
    return list(constants) if len(constants) == expected else []


class _Expansion:
    """The rewriting of one recurrent operator."""

    def __init__(self, node: "Node", known: dict[Any, Any], result: Any, root: "torch.nn.Module") -> None:
        self.node, self.known, self.result, self.root = node, known, result, root
        self.kind = operator_name(node)
        # Two layers inside one of Keras have its name; the second call of a layer has the same weights.
        self.base, count = _base(node), 1
        first = getattr(root, str(node.args[2][0].target), None) if node.args[2][0].op == "get_attr" else None
        while getattr(root, f"{self.base}{INSIDE}input_l0_weight", first) is not first:
            count += 1
            self.base = f"{_base(node)}{INSIDE}{count}"

    def call(self, target: Any, *args: Any) -> "Node":
        created: Node = self.result.call_function(target, args)
        return created

    def constant(self, node: Any, part: str) -> Any:
        """A weight under a name that tells the part of the layer."""
        if node is None:
            return None
        if node.op != "get_attr":
            return self.known[node]
        name, value = f"{self.base}{INSIDE}{part}", getattr(self.root, str(node.target))
        if not hasattr(self.root, name):
            self.root.register_buffer(name, value)
        return self.result.get_attr(name)

    def run(self, weights: list[Any]) -> tuple["Node", ...]:
        import torch

        aten = torch.ops.aten
        _, has_biases, layers, _, _, bidirectional, batch_first = self.node.args[2:9]
        states = self.node.args[1] if self.kind == "lstm" else [self.node.args[1]]
        states = [self.known[state] for state in states]
        x = self.known[self.node.args[0]]
        x = self.call(aten.permute.default, x, [1, 0, 2]) if batch_first else x
        each = 4 if has_biases else 2
        finals: list[tuple[Node, ...]] = []
        for layer in range(layers):
            outputs = []
            for suffix in ("", "_reverse")[: 2 if bidirectional else 1]:
                index = len(finals)
                w_x, w_h, b_x, b_h = (*weights[index * each : (index + 1) * each], None, None)[:4]
                at = f"l{layer}{suffix}"
                projected = self.call(
                    aten.linear.default,
                    x,
                    self.constant(w_x, f"input_{at}_weight"),
                    self.constant(b_x, f"input_{at}_bias"),
                )
                start = [self.call(aten.select.int, state, 0, index) for state in states]
                loop = self.call(
                    step_loop(),
                    projected,
                    self.constant(w_h, f"hidden_{at}_weight"),
                    self.constant(b_h, f"hidden_{at}_bias"),
                    start[0],
                    start[-1],
                    self.kind,
                    bool(suffix),
                )
                parts = tuple(self.call(operator.getitem, loop, place) for place in range(1 + len(start)))
                outputs.append(parts[0])
                finals.append(parts[1:])
            x = self.call(aten.cat.default, outputs, -1) if bidirectional else outputs[0]
        x = self.call(aten.permute.default, x, [1, 0, 2]) if batch_first else x
        return x, *(self.call(aten.stack.default, list(each), 0) for each in zip(*finals, strict=True))
