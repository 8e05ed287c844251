"""The first run of an ONNX graph, which computes what does not depend on its inputs."""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, NamedTuple

from edgeopt.errors import StageError
from edgeopt.formats.torch.graph.layers import weight_name
from edgeopt.formats.torch.lab.engine import brief
from edgeopt.formats.torch.onnx_operators import arithmetic
from edgeopt.formats.torch.onnx_operators.carried import DOMAINS, OTHERWISE, refusal
from edgeopt.formats.torch.onnx_operators.table import TABLE, Operator, Unsupported

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Value(NamedTuple):
    """A value of the first run: the tensor, and whether it is the same for all inputs of the model."""

    tensor: Any
    known: bool
    key: int
    name: str = ""


class Step(NamedTuple):
    """A node that remains."""

    call: Callable[..., Any]
    inputs: tuple[int | None, ...]
    """Keys of its inputs; None for those in ``arrays`` and those that are omitted."""
    arrays: Mapping[int, Any]
    options: Mapping[str, Any]
    outputs: tuple[int, ...]


class FirstRun:
    """Runs a graph, and records the nodes whose results depend on the inputs."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.steps: list[Step] = []
        self.values: list[Value] = []
        self.labels: dict[int, str] = {}
        """Names of constants after the layers that read them."""

    def value(self, tensor: Any, *, known: bool, name: str = "") -> Value:
        made = Value(tensor, known, len(self.values), name)
        self.values.append(made)
        return made

    def graph(self, graph: Any, scope: dict[str, Value]) -> None:
        for tensor in graph.initializer:
            scope[tensor.name] = self.value(_tensor(tensor), known=True, name=tensor.name)
        if graph.sparse_initializer:
            raise StageError("the model has sparse constants", fix="export it with dense ones")
        waiting = list(graph.node)
        # Nodes should be in order of execution, but runtimes accept files in which they are not.
        while waiting:
            later = []
            for node in waiting:
                if all(name in scope for name in _read(node)):
                    self._node(node, scope)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                missing = next(name for name in _read(later[0]) if name not in scope)
                raise StageError(
                    f"{title(later[0])} reads {missing!r}, which no node computes",
                    fix="export the model again",
                )
            waiting = later

    def _node(self, node: Any, scope: dict[str, Value]) -> None:
        import onnx

        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" and node.domain in DOMAINS:
            scope[node.output[0]] = self.value(_constant(attributes), known=True, name=node.output[0])
            return
        if node.op_type == "If" and node.domain in DOMAINS:
            self._branch(node, attributes, scope)
            return
        if refused := refusal(node.op_type, node.domain):
            message = f"{title(node)} cannot be converted to PyTorch: {refused.cause}"
            raise StageError(message, fix=refused.fix)
        operator = TABLE[node.op_type]
        inputs = [scope[name] if name else None for name in node.input]
        options = self._options(node, operator, attributes)
        arrays = {
            at: value.tensor.numpy()
            for at, value in enumerate(inputs)
            if value is not None and (at in operator.known or (at in operator.maybe and value.known))
        }
        for at in operator.known:
            if at < len(inputs) and (value := inputs[at]) is not None and not value.known:
                raise StageError(
                    f"{title(node)} cannot be converted: its input {node.input[at]!r} depends on the values "
                    "of the model's inputs",
                    fix="export the model so that shapes and indices are constant",
                )
        try:
            called = [
                arrays.get(at, None if value is None else value.tensor) for at, value in enumerate(inputs)
            ]
            results = operator.call(*called, **options)
        except Unsupported as error:
            raise StageError(f"{title(node)} cannot be converted: {error}", fix=OTHERWISE) from error
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise StageError(
                f"{title(node)} does not run on these inputs: {brief(error)}",
                fix="correct 'inputs' in the recipe, or the model",
            ) from error
        tensors = results if isinstance(results, tuple) else (results,)
        known = operator.of_shape or all(value is None or value.known for value in inputs)
        made = [self.value(tensor, known=known) for tensor in tensors[: len(node.output)]]
        scope.update(zip(node.output, made, strict=False))
        if known:
            return
        if node.op_type in WEIGHTED:
            self._label(node, inputs)
        keys = tuple(None if value is None or at in arrays else value.key for at, value in enumerate(inputs))
        self.steps.append(Step(operator.call, keys, arrays, options, tuple(value.key for value in made)))

    def _options(self, node: Any, operator: Operator, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by keyword."""
        from onnx import TensorProto

        parameters = signature(operator.call).parameters
        keywords = {name for name, each in parameters.items() if each.kind is Parameter.KEYWORD_ONLY}
        options = {}
        for name, value in attributes.items():
            if name not in keywords:
                raise StageError(
                    f"{title(node)} cannot be converted: its attribute {name} is not carried",
                    fix=OTHERWISE,
                )
            if isinstance(value, bytes):
                value = value.decode()
            elif isinstance(value, TensorProto):
                value = _tensor(value).numpy()
            elif isinstance(value, list | tuple):
                value = [each.decode() if isinstance(each, bytes) else each for each in value]
            options[name] = value
        if "opset" in keywords:
            options["opset"] = self.opset
        if "count" in keywords:
            options["count"] = sum(1 for name in node.output if name)
        return options

    def _branch(self, node: Any, attributes: Mapping[str, Any], scope: dict[str, Value]) -> None:
        condition = scope[node.input[0]]
        if not condition.known:
            raise StageError(
                f"{title(node)} cannot be converted: its condition {node.input[0]!r} depends on the values "
                "of the model's inputs",
                fix="export the branch that is used, such as one sampling rate, as a model of its own; or "
                "fix the input that selects it, in 'inputs' of the recipe: {name: sr, …, value: 16000}",
            )
        graph = attributes["then_branch" if bool(condition.tensor.any()) else "else_branch"]
        inner = dict(scope)
        self.graph(graph, inner)
        scope.update((name, inner[value.name]) for name, value in zip(node.output, graph.output, strict=True))

    def _label(self, node: Any, inputs: Sequence[Value | None]) -> None:
        layer = plain(node.name or node.output[0], keep="/")
        for value, part in zip(inputs[1:3], ("kernel", "bias"), strict=False):
            if value is not None and value.known:
                self.labels.setdefault(value.key, weight_name(layer, part))


def _read(node: Any) -> set[str]:
    """The values that a node reads, also inside its branches."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.HasField("g"):
            inner = attribute.g
            names |= {name for each in inner.node for name in _read(each)}
            names |= {value.name for value in inner.output}
            names -= {name for each in inner.node for name in each.output}
            names -= {tensor.name for tensor in inner.initializer}
    return names


def plain(name: str, keep: str = "") -> str:
    """A name of letters, digits, underscores and characters to ``keep``, as constants of a program have."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in keep else "_" for c in name)


def title(node: Any) -> str:
    """A node as messages name it."""
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def _tensor(proto: Any) -> Any:
    """The values of a constant, in the type in which they are computed."""
    import numpy as np
    import onnx
    import torch

    dtype = arithmetic.DTYPES.get(proto.data_type)
    if dtype is None:
        kind = onnx.TensorProto.DataType.Name(proto.data_type)
        raise StageError(
            f"the constant {proto.name!r} has the type {kind}, which PyTorch cannot compute with",
            fix="export the model with another type",
        )
    return torch.from_numpy(np.array(onnx.numpy_helper.to_array(proto).astype(dtype)))


def _constant(attributes: Mapping[str, Any]) -> Any:
    """The values of a node ``Constant``."""
    import torch

    if "value" in attributes:
        return _tensor(attributes["value"])
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        if name in attributes:
            return torch.tensor(attributes[name], dtype=dtype)
        if f"{name}s" in attributes:
            return torch.tensor(list(attributes[f"{name}s"]), dtype=dtype)
    raise StageError("the model has sparse constants, or texts", fix="export it with dense numbers")
