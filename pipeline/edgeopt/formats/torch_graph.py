"""Exported programs: reading, writing, and bringing their graphs into one plain form.

The plain form is a ``torch.fx.GraphModule`` of functional aten operators in which every weight is a
buffer: constants are folded, batch norm and other per-channel arithmetic lies inside the convolution or
linear layer before it, zero padding inside the convolution after it, and the permutes that a
channels-last framework puts around each convolution are gone where they cancel out. It computes what
the program computed, up to float rounding, whichever framework the program came from.
"""

import keyword
import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

Shape: TypeAlias = tuple[int, ...]

NOTHING = frozenset(
    {
        "contiguous",
        "clone",
        "alias",
        "detach",
        "detach_",
        "lift_fresh_copy",
        "lift_fresh",
        "dropout",
        "dropout_",
    }
    | {"feature_dropout", "alpha_dropout", "native_dropout"}
)
"""Operators that change no value in a program for inference."""

UNARY = frozenset(
    {"relu", "relu6", "hardtanh", "sigmoid", "tanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "gelu"}
    | {"silu", "exp", "log", "sqrt", "rsqrt", "neg", "abs", "clamp", "clamp_min", "clamp_max", "mish"}
    | {"softplus", "selu", "square", "reciprocal"}
)
BINARY = frozenset({"add", "sub", "mul", "div", "maximum", "minimum"})
AFFINE = frozenset({"add", "sub", "mul", "div"})
LAYERS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})

ALIASES = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "view": "reshape",
    "_unsafe_view": "reshape",
    "unsqueeze": "reshape",
    "squeeze": "reshape",
    "flatten": "reshape",
    "view_copy": "reshape",
    "squeeze_copy": "reshape",
    "unsqueeze_copy": "reshape",
}
"""Operators that are written in another way in the plain form."""

ROUNDS = 64
"""More rewriting rounds than any graph seen needed; a rule that undoes another must not hang a run."""


def simplify(
    module: "GraphModule", inputs: "Sequence[torch.Tensor]", names: Sequence[str] = ()
) -> "GraphModule":
    """Rewrite a graph of functional aten operators into the plain form, for inputs like the given ones.

    Args:
        module: takes its inputs by position; whatever it returns is flattened.
        inputs: examples of the right shape and dtype, such as zeros; the values do not matter.
        names: how the inputs are to be called in the result.

    Returns:
        A module that returns one tensor, or a tuple of several.
    """
    import torch

    with torch.no_grad():
        return _Rewriter(module, tuple(inputs)).run(names)


class _Rewriter:
    """Applies rewriting rules to one graph until none of them finds anything to do."""

    def __init__(self, module: "GraphModule", inputs: "tuple[torch.Tensor, ...]") -> None:
        import torch
        from torch.utils import _pytree

        self.torch = torch
        self.aten = torch.ops.aten
        self.inputs = inputs
        self.source = module
        self.count = 0
        # A fresh root: hooks, guards and pytree code of the exported module stay behind.
        self.root = torch.nn.Module()
        graph = torch.fx.Graph()
        known: dict[Node, Node] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                value = operator.attrgetter(node.target)(module)
                known[node] = self._constant(graph, value.detach(), node.target)
            elif node.op == "call_module":
                continue  # the guards on inputs; shapes are fixed here
            elif node.op == "output":
                leaves = [leaf for leaf in _pytree.tree_leaves(node.args) if leaf is not None]
                results = tuple(known[leaf] for leaf in leaves)
                graph.output(results[0] if len(results) == 1 else results)
            else:
                known[node] = graph.node_copy(node, lambda old: known[old])
                known[node].meta = {}
        self.module = torch.fx.GraphModule(self.root, graph)
        self.root = self.module
        self.graph = self.module.graph

    def run(self, names: Sequence[str]) -> "GraphModule":
        for _ in range(ROUNDS):
            self._clean()
            self._measure()
            if not self._round():
                break
        self._clean()
        self._name(names)
        self.module.recompile()
        return self.module.eval()

    def _round(self) -> bool:
        # Rules that rely on shapes end the round they change something in only after a full pass: each
        # gives its new nodes their shape itself.
        rules: tuple[Callable[[Node], bool], ...] = (
            self._drop_nothing,
            self._rename,
            self._fold_constant,
            self._fold_batch_norm,
            self._fold_affine,
            self._fold_padding,
            self._join_permutes,
            self._join_reshapes,
            self._sink_permute,
            self._permute_into_linear,
        )
        changed = False
        for node in list(self.graph.nodes):
            if node.op != "call_function" or node._erased:
                continue
            for rule in rules:
                if rule(node):
                    changed = True
                    break
        return changed

    def _clean(self) -> None:
        self.graph.eliminate_dead_code()
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        for name in [name for name, _ in self.module.named_buffers() if name not in used]:
            delattr(self.module, name)
        self.graph.lint()

    def _name(self, names: Sequence[str]) -> None:
        """Give inputs the names of their specs, and constants names without the count of rewrites."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        wanted = [re.sub(r"\W", "_", name) for name in names]
        fit = len(set(wanted)) == len(wanted) and all(
            name.isidentifier() and not keyword.iskeyword(name) and name not in ("self", "torch")
            for name in wanted
        )
        for index, node in enumerate(placeholders):
            node.target = node._rename(wanted[index] if fit else f"input_{index}") or node.name
        taken = {str(node.target) for node in placeholders}
        constants: dict[str, Node] = {}
        values = dict(self.module.named_buffers())
        for node in self.graph.nodes:
            if node.op == "get_attr":
                old = str(node.target)
                if old not in constants:
                    constants[old] = node
        renamed: dict[str, str] = {}
        for old in constants:
            stem = re.sub(r"_v\d+$", "", old)
            new, count = stem, 1
            while new in taken:
                count += 1
                new = f"{stem}_{count}"
            taken.add(new)
            renamed[old] = new
            delattr(self.module, old)
        for old, new in renamed.items():
            self.module.register_buffer(new, values[old])
        for node in self.graph.nodes:
            if node.op == "get_attr":
                node.target = renamed[str(node.target)]

    def _measure(self) -> None:
        from torch.fx.passes.shape_prop import ShapeProp

        self.module.recompile()
        ShapeProp(self.module).propagate(*self.inputs)

    # small tools

    def _constant(self, graph: Any, value: "torch.Tensor", hint: str) -> "Node":
        stem = re.sub(r"\W", "_", hint)
        stem = re.sub(r"_v\d+$", "", stem)
        if stem[:1].isdigit() or not stem:
            stem = f"p_{stem}"
        self.count += 1
        name = stem if not hasattr(self.root, stem) else f"{stem}_v{self.count}"
        self.root.register_buffer(name, value.detach().clone().contiguous())
        return graph.get_attr(name)

    def _value(self, node: object) -> "torch.Tensor":
        assert isinstance(node, self.torch.fx.Node)
        return getattr(self.module, str(node.target))

    def _is_constant(self, node: object) -> bool:
        return isinstance(node, self.torch.fx.Node) and node.op == "get_attr"

    def _shape(self, node: "Node") -> Shape | None:
        if node.op == "get_attr":
            return tuple(self._value(node).shape)
        meta = node.meta.get("tensor_meta")
        shape = getattr(meta, "shape", None)
        return None if shape is None else tuple(shape)

    def _dtype(self, node: "Node") -> Any:
        return self._value(node).dtype if node.op == "get_attr" else node.meta["tensor_meta"].dtype

    def _new(self, before: "Node", target: Any, args: tuple[Any, ...], shape_of: "Node | Shape") -> "Node":
        """Insert a call before a node; its shape is that of another node or given."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        if isinstance(shape_of, tuple):
            like = next(a for a in self._flat(args) if not self._is_constant(a))
            node.meta["tensor_meta"] = like.meta["tensor_meta"]._replace(shape=self.torch.Size(shape_of))
        else:
            node.meta["tensor_meta"] = shape_of.meta["tensor_meta"]
        return node

    def _flat(self, args: object) -> "list[Node]":
        from torch.utils import _pytree

        return [leaf for leaf in _pytree.tree_leaves(args) if isinstance(leaf, self.torch.fx.Node)]

    def _store(self, before: "Node", value: "torch.Tensor", hint: str) -> "Node":
        with self.graph.inserting_before(before):
            return self._constant(self.graph, value, hint)

    def _replace(self, node: "Node", by: "Node") -> bool:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)
        return True

    # rules: each says whether it changed something

    def _drop_nothing(self, node: "Node") -> bool:
        name = operator_name(node)
        if name in ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"):
            self.graph.erase_node(node)
            return True
        if name == "getitem" and operator_name(node.args[0]) in (
            "_native_batch_norm_legit_no_training",
            "native_dropout",
        ):
            if operator_name(node.args[0]) == "native_dropout":
                return self._replace(node, node.args[0].args[0]) if node.args[1] == 0 else False
            return False
        if name == "native_dropout" or not node.args or not isinstance(node.args[0], self.torch.fx.Node):
            return False
        source = node.args[0]
        if name in NOTHING:
            return self._replace(node, source)
        if self._shape(source) is None or self._shape(node) is None:
            return False
        same = self._shape(source) == self._shape(node)
        if name in ("to", "_to_copy", "type_as") and self._dtype(source) == self._dtype(node):
            return self._replace(node, source)
        if same and name in (
            "reshape",
            "expand",
            "slice",
            *(k for k, v in ALIASES.items() if v == "reshape"),
        ):
            return self._replace(node, source)
        if name == "permute" and list(node.args[1]) == list(range(len(self._shape(source) or ()))):
            return self._replace(node, source)
        return False

    def _rename(self, node: "Node") -> bool:
        """Write an operator the one way the other rules know."""
        name = operator_name(node)
        aten = self.aten
        plain_name = ALIASES.get(name)
        if plain_name == "reshape" and isinstance(self._shape(node), tuple):
            return self._replace(
                node,
                self._new(node, aten.reshape.default, (node.args[0], list(self._shape(node) or ())), node),
            )
        if plain_name is not None and plain_name != "reshape" and len(node.args) == 2 and not node.kwargs:
            overload = "Tensor" if isinstance(node.args[1], self.torch.fx.Node) else "Scalar"
            target = getattr(getattr(aten, plain_name), overload, getattr(aten, plain_name).Tensor)
            return self._replace(node, self._new(node, target, node.args, node))
        if name == "transpose" and isinstance(node.args[0], self.torch.fx.Node):
            order = list(range(len(self._shape(node) or ())))
            a, b = (int(axis) % len(order) for axis in node.args[1:3])
            order[a], order[b] = order[b], order[a]
            return self._replace(node, self._new(node, aten.permute.default, (node.args[0], order), node))
        if name == "t" and len(self._shape(node) or ()) == 2:
            return self._replace(node, self._new(node, aten.permute.default, (node.args[0], [1, 0]), node))
        if name == "constant_pad_nd" or (
            name == "pad" and (len(node.args) < 3 or node.args[2] == "constant")
        ):
            if name == "pad":
                fill = node.args[3] if len(node.args) > 3 and node.args[3] is not None else 0.0
                fill = node.kwargs.get("value", fill) or 0.0
                return self._replace(
                    node,
                    self._new(
                        node, aten.constant_pad_nd.default, (node.args[0], list(node.args[1]), fill), node
                    ),
                )
            return False
        if name in ("convolution", "_convolution") and not node.args[6] and not any(node.args[7]):
            x, weight, bias, stride, padding, dilation, _, _, groups = node.args[:9]
            rank = len(self._shape(x) or ()) - 2
            target = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[rank]
            return self._replace(
                node, self._new(node, target, (x, weight, bias, stride, padding, dilation, groups), node)
            )
        if (
            name == "addmm"
            and not node.kwargs
            and self._is_constant(node.args[2])
            and self._is_constant(node.args[0])
        ):
            bias, x, weight = node.args
            turned = self._store(node, self._value(weight).t(), str(weight.target))
            if self._value(bias).dim() == 1:
                return self._replace(node, self._new(node, aten.linear.default, (x, turned, bias), node))
        if (
            name in ("mm", "matmul")
            and self._is_constant(node.args[1])
            and self._value(node.args[1]).dim() == 2
        ):
            x, weight = node.args
            if isinstance(x, self.torch.fx.Node) and len(self._shape(x) or ()) >= 2:
                turned = self._store(node, self._value(weight).t(), str(weight.target))
                return self._replace(node, self._new(node, aten.linear.default, (x, turned, None), node))
        if name in ("conv1d", "conv2d", "conv3d") and len(node.args) < 7:
            rank = len(self._shape(node.args[0]) or ()) - 2
            defaults = (None, None, None, [1] * rank, [0] * rank, [1] * rank, 1)
            args = tuple(node.args) + defaults[len(node.args) :]
            if node.kwargs:
                return False
            node.args = args
            return True
        if name == "linear" and len(node.args) == 2:
            node.args = (*node.args, None)
            return True
        return False

    def _fold_constant(self, node: "Node") -> bool:
        """Compute now what depends on no input."""
        torch = self.torch
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        if torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable:
            return False
        needed = self._flat((node.args, node.kwargs))
        if not all(self._is_constant(other) for other in needed):
            return False
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._value)
        value = node.target(*args, **kwargs)
        if not isinstance(value, torch.Tensor):
            return False
        before = sum(self._value(other).numel() for other in needed)
        if value.numel() > max(4 * before, 1 << 16):
            return False  # an expanded constant is better made on the device
        hint = str(needed[0].target) if needed else "constant"
        return self._replace(node, self._store(node, value, hint))

    def _layer_before(self, node: "Node", source: object) -> "Node | None":
        """The convolution or linear layer with constant weights that only ``node`` reads."""
        if not isinstance(source, self.torch.fx.Node) or operator_name(source) not in LAYERS:
            return None
        if (
            len(source.users) != 1
            or source.kwargs
            or len(source.args) < 3
            or not self._is_constant(source.args[1])
        ):
            return None
        if source.args[2] is not None and not self._is_constant(source.args[2]):
            return None
        return source

    def _scale_layer(self, node: "Node", layer: "Node", scale: "torch.Tensor", shift: "torch.Tensor") -> bool:
        """Replace ``node`` by ``layer * scale + shift``, both per output channel, in float64."""
        weight = self._value(layer.args[1])
        bias = layer.args[2]
        old = (
            self._value(bias).double()
            if bias is not None
            else self.torch.zeros(weight.shape[0], dtype=self.torch.double)
        )
        scaled = weight.double() * scale.double().reshape(-1, *[1] * (weight.dim() - 1))
        moved = (old * scale.double() + shift.double()).expand(weight.shape[0])
        hint = str(layer.args[1].target)
        new_weight = self._store(layer, scaled.to(weight.dtype), hint)
        new_bias = self._store(
            layer, moved.to(weight.dtype), str(bias.target) if bias is not None else _bias_name(hint)
        )
        new = self._new(node, layer.target, (layer.args[0], new_weight, new_bias, *layer.args[3:]), node)
        self._replace(node, new)
        self.graph.erase_node(layer)
        return True

    def _fold_batch_norm(self, node: "Node") -> bool:
        name = operator_name(node)
        if name == "batch_norm":
            x, weight, bias, mean, variance, training, _, epsilon = node.args[:8]
            result = node
        elif name == "getitem" and operator_name(node.args[0]) == "_native_batch_norm_legit_no_training":
            x, weight, bias, mean, variance, _, epsilon = node.args[0].args[:7]
            training, result = False, node
            if node.args[1] != 0:
                return False
        elif name == "getitem" and operator_name(node.args[0]) == "native_batch_norm":
            x, weight, bias, mean, variance, training, _, epsilon = node.args[0].args[:8]
            result = node
            if node.args[1] != 0:
                return False
        else:
            return False
        if training or not self._is_constant(mean) or not self._is_constant(variance):
            return False
        scale = (self._value(variance).double() + epsilon).rsqrt()
        if weight is not None:
            scale = scale * self._value(weight).double()
        shift = -self._value(mean).double() * scale
        if bias is not None:
            shift = shift + self._value(bias).double()
        norm = node if result is node and name == "batch_norm" else node.args[0]
        layer = self._layer_before(norm, x)
        if layer is not None:
            if norm is node:
                return self._scale_layer(node, layer, scale, shift)
            self._scale_layer(node, layer, scale, shift) if len(norm.users) == 1 and self._alone(
                norm, layer
            ) else None
            return True
        # No layer to go into: two elementwise operators, which every target knows.
        rank = len(self._shape(x) or ())
        shape = (1, -1, *[1] * (rank - 2))
        hint = str(mean.target)
        factor = self._store(node, scale.float().reshape(shape), f"{hint}_scale")
        offset = self._store(node, shift.float().reshape(shape), f"{hint}_shift")
        product = self._new(node, self.aten.mul.Tensor, (x, factor), x)
        return self._replace(node, self._new(node, self.aten.add.Tensor, (product, offset), x))

    def _alone(self, norm: "Node", layer: "Node") -> bool:
        """Detach a batch norm of three results from its layer, so that the layer can go."""
        norm.args = (norm.args[0].args[0], *norm.args[1:])
        return not layer.users

    def _per_channel(self, value: object, layer: "Node") -> "torch.Tensor | None":
        """A constant operand as one number (or one per channel) of the layer's output, or None."""
        torch = self.torch
        if isinstance(value, int | float):
            return torch.tensor([float(value)], dtype=torch.double)
        if not self._is_constant(value):
            return None
        tensor = self._value(value)
        rank = len(self._shape(layer) or ())
        if tensor.numel() == 1:
            return tensor.double().reshape(1)
        if tensor.dim() > rank or not tensor.is_floating_point():
            return None
        axis = rank - 1 if operator_name(layer) == "linear" else 1
        full = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
        if any(size != 1 for index, size in enumerate(full) if index != axis):
            return None
        return tensor.double().reshape(-1)

    def _fold_affine(self, node: "Node") -> bool:
        """Put ``+ - * /`` with a constant per channel into the layer before it."""
        name = operator_name(node)
        if name not in AFFINE or node.kwargs or len(node.args) != 2:
            return False
        for position in (0, 1):
            layer = self._layer_before(node, node.args[position])
            if layer is None:
                continue
            other = self._per_channel(node.args[1 - position], layer)
            if other is None or (name == "div" and position == 1) or self._shape(layer) != self._shape(node):
                continue
            one, none = self.torch.ones(1), self.torch.zeros(1)
            if name == "add":
                return self._scale_layer(node, layer, one, other)
            if name == "sub":
                return self._scale_layer(
                    node, layer, one if position == 0 else -one, -other if position == 0 else other
                )
            return self._scale_layer(node, layer, other if name == "mul" else 1 / other, none)
        return False

    def _fold_padding(self, node: "Node") -> bool:
        """Zero padding alike on both sides goes into the convolution after it."""
        if operator_name(node) not in ("conv1d", "conv2d", "conv3d") or len(node.args) < 7:
            return False
        pad = node.args[0]
        if not isinstance(pad, self.torch.fx.Node) or operator_name(pad) != "constant_pad_nd":
            return False
        if not isinstance(node.args[4], list | tuple) or (len(pad.args) > 2 and pad.args[2] != 0):
            return False
        rank = len(self._shape(node) or ()) - 2
        amounts = list(pad.args[1])
        amounts += [0] * (2 * (rank + 2) - len(amounts))
        pairs = [(amounts[2 * i], amounts[2 * i + 1]) for i in range(rank + 2)]
        if any(before != after or before < 0 for before, after in pairs) or any(
            p != (0, 0) for p in pairs[rank:]
        ):
            return False
        padding = [old + pairs[rank - 1 - i][0] for i, old in enumerate(_spread(node.args[4], rank))]
        node.args = (pad.args[0], *node.args[1:4], padding, *node.args[5:])
        return True

    def _join_permutes(self, node: "Node") -> bool:
        if operator_name(node) != "permute":
            return False
        source = node.args[0]
        shape = self._shape(source)
        if shape is None:
            return False
        order = [int(axis) % len(shape) for axis in node.args[1]]
        if operator_name(source) == "permute":
            inner = [int(axis) % len(shape) for axis in source.args[1]]
            joined = [inner[axis] for axis in order]
            if joined == sorted(joined):
                return self._replace(node, source.args[0])
            return self._replace(node, self._new(node, node.target, (source.args[0], joined), node))
        kept = [axis for axis in order if shape[axis] != 1]
        if kept == sorted(kept):
            # Only axes of size 1 move: nothing moves in memory.
            sizes = [shape[axis] for axis in order]
            return self._replace(node, self._new(node, self.aten.reshape.default, (source, sizes), node))
        return False

    def _join_reshapes(self, node: "Node") -> bool:
        source: Any = node.args[0] if node.args else None
        if operator_name(node) != "reshape" or operator_name(source) != "reshape":
            return False
        sizes = list(self._shape(node) or ())
        return self._replace(node, self._new(node, node.target, (source.args[0], sizes), node))

    def _permuted(self, value: object) -> "tuple[Node, list[int]] | None":
        """Source and order of a permute, where ``value`` is one."""
        if operator_name(value) != "permute":
            return None
        source = value.args[0]  # type: ignore[attr-defined]
        rank = len(self._shape(source) or ())
        return source, [int(axis) % rank for axis in value.args[1]]  # type: ignore[attr-defined]

    def _sink_permute(self, node: "Node") -> bool:
        """Move a permute behind the operator that reads it, towards the permute that undoes it."""
        name = operator_name(node)
        if name in UNARY or name in (
            "softmax",
            "_softmax",
            "log_softmax",
            "mean",
            "constant_pad_nd",
            "slice",
        ):
            found = self._permuted(node.args[0])
            if found is None:
                return False
            source, order = found
            if name == "mean":
                return self._sink_mean(node, source, order)
            args = [source, *node.args[1:]]
            rank = len(order)
            if name in ("softmax", "_softmax", "log_softmax"):
                args[1] = order[int(args[1]) % rank]
            elif name == "slice":
                args[1] = order[int(args[1] if len(args) > 1 else 0) % rank]
            elif name == "constant_pad_nd":
                amounts = list(args[1])
                amounts += [0] * (2 * rank - len(amounts))
                pairs = {rank - 1 - i: amounts[2 * i : 2 * i + 2] for i in range(rank)}
                moved = {order[axis]: pair for axis, pair in pairs.items()}
                args[1] = [n for i in range(rank) for n in moved[rank - 1 - i]]
                while len(args[1]) > 2 and args[1][-2:] == [0, 0]:
                    args[1] = args[1][:-2]
            return self._behind(node, tuple(args), order)
        if name in BINARY:
            return self._sink_binary(node)
        if name == "cat":
            return self._sink_cat(node)
        return False

    def _behind(self, node: "Node", args: tuple[Any, ...], order: list[int]) -> bool:
        """Replace ``node`` by ``permute(node(args), order)``."""
        shape = self._shape(node) or ()
        inner: list[int] = [0] * len(order)
        for axis, old in enumerate(order):
            inner[old] = shape[axis]
        new = self._new(node, node.target, args, tuple(inner))
        new.kwargs = node.kwargs
        return self._replace(node, self._new(node, self.aten.permute.default, (new, order), node))

    def _sink_mean(self, node: "Node", source: "Node", order: list[int]) -> bool:
        if len(node.args) < 2 or not node.args[1]:
            return False
        rank = len(order)
        axes = [int(axis) % rank for axis in node.args[1]]
        moved = sorted(order[axis] for axis in axes)
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        if keep:
            return self._behind(node, (source, moved, True), order)
        rest = [order[axis] for axis in range(rank) if axis not in axes]
        ranks = [sorted(rest).index(axis) for axis in rest]
        return self._behind(node, (source, moved), ranks)

    def _sink_binary(self, node: "Node") -> bool:
        found = [self._permuted(arg) for arg in node.args[:2]]
        orders = [pair[1] for pair in found if pair is not None]
        if not orders or any(order != orders[0] for order in orders):
            return False
        order = orders[0]
        if len(self._shape(node) or ()) != len(order):
            return False
        args: list[Any] = []
        for arg, pair in zip(node.args[:2], found, strict=True):
            if pair is not None:
                args.append(pair[0])
            elif isinstance(arg, self.torch.fx.Node):
                turned = self._turned(node, arg, order)
                if turned is None:
                    return False
                args.append(turned)
            else:
                args.append(arg)
        return self._behind(node, tuple(args), order)

    def _turned(self, node: "Node", value: "Node", order: list[int]) -> "Node | None":
        """``value`` with its axes as they were before the permute, where that costs nothing."""
        rank = len(order)
        inverse = [order.index(axis) for axis in range(rank)]
        shape = self._shape(value)
        if shape is None or len(shape) > rank:
            return None
        full = (1,) * (rank - len(shape)) + shape
        if self._is_constant(value):
            if all(size == 1 for size in shape):
                return value
            return self._store(node, self._value(value).reshape(full).permute(inverse), str(value.target))
        if sum(size != 1 for size in full) > 1:
            return None
        sizes = [full[axis] for axis in inverse]
        return self._new(node, self.aten.reshape.default, (value, sizes), tuple(sizes))

    def _sink_cat(self, node: "Node") -> bool:
        found = [self._permuted(arg) for arg in node.args[0]]
        if not found or any(pair is None or pair[1] != found[0][1] for pair in found):  # type: ignore[index]
            return False
        order = found[0][1]  # type: ignore[index]
        axis = order[int(node.args[1] if len(node.args) > 1 else 0) % len(order)]
        return self._behind(node, ([pair[0] for pair in found], axis), order)  # type: ignore[index]

    def _permute_into_linear(self, node: "Node") -> bool:
        """``linear(flatten(permute(x)))``: reorder the columns of the weights instead of the data."""
        if operator_name(node) != "linear" or not self._is_constant(node.args[1]) or node.kwargs:
            return False
        flat = node.args[0]
        if operator_name(flat) != "reshape":
            return False
        found = self._permuted(flat.args[0])
        shape = self._shape(flat.args[0])
        if found is None or shape is None:
            return False
        source, order = found
        if order[0] != 0 or tuple(self._shape(flat) or ()) != (shape[0], int(np.prod(shape[1:]))):
            return False
        weight = self._value(node.args[1])
        columns = weight.reshape(weight.shape[0], *shape[1:])
        inverse = [order.index(axis) for axis in range(len(order))]
        turned = columns.permute(inverse).reshape(weight.shape)
        sizes = tuple(self._shape(flat) or ())
        straight = self._new(node, self.aten.reshape.default, (source, list(sizes)), sizes)
        stored = self._store(node, turned, str(node.args[1].target))
        return self._replace(node, self._new(node, node.target, (straight, stored, node.args[2]), node))


def operator_name(node: object) -> str:
    """``relu`` for a call of ``aten.relu.default``; ``getitem`` for the Python operator; else empty."""
    import torch

    if not isinstance(node, torch.fx.Node) or node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname if node.target.namespace == "aten" else str(node.target)
    return "getitem" if node.target is operator.getitem else ""


def _bias_name(weight: str) -> str:
    name = re.sub(r"_v\d+$", "", weight)
    return re.sub(r"weight$|kernel$", "", name).rstrip("_") + "_bias"


def _spread(values: Sequence[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)
