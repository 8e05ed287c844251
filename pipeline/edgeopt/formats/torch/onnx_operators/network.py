"""An ONNX graph as a PyTorch module, by partial evaluation at fixed input shapes.

The graph is run once. What does not depend on the values of its inputs is computed then: shapes, branches
of ``If``, and arithmetic on constants. The remaining nodes become the module.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats.torch.files.specs import zeros
from edgeopt.formats.torch.graph.layers import weight_name
from edgeopt.formats.torch.lab.engine import brief, one_thread, quiet
from edgeopt.formats.torch.onnx_operators.carried import DOMAINS, EXPANDED, FIRST_OPSET
from edgeopt.formats.torch.onnx_operators.first_run import FirstRun, Value, plain
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch


def build(proto: Any, inputs: Sequence[TensorSpec]) -> "tuple[torch.nn.Module, dict[int, str]]":
    """A module that computes the graph of a ``ModelProto``, for inputs of exactly these shapes and types.

    Returns:
        The module, and the name of each constant by its address, from which `layer_of` derives the layer.

    Raises:
        StageError: a node cannot be converted; the message names it, its operator and the way out.
    """
    import torch

    proto = _expanded(proto)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in DOMAINS), 1)
    if opset < FIRST_OPSET:
        raise StageError(
            f"the model uses operator set {opset} of ONNX; {FIRST_OPSET} and later are supported",
            fix=f"convert it: onnx.version_converter.convert_version(model, {FIRST_OPSET})",
        )
    run = FirstRun(opset)
    with torch.no_grad(), one_thread(), quiet():
        graph = proto.graph
        constants = {tensor.name for tensor in graph.initializer}
        free = [value.name for value in graph.input if value.name not in constants]
        scope = {
            name: run.value(tensor, known=spec.value is not None, name=name)
            for name, tensor, spec in zip(free, zeros(inputs), inputs, strict=True)
        }
        entries = [value.key for value in scope.values()]
        run.graph(graph, scope)
        results = [scope[value.name] for value in graph.output]
    return _module(run, entries, results)


def _expanded(proto: Any) -> Any:
    """The model without functions: those of the file, and those that the specification composes."""
    import onnx.inliner

    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    composed = sorted({node.op_type for node in proto.graph.node} & EXPANDED)
    if composed:
        names = [("", name) for name in composed]
        try:
            proto = onnx.inliner.inline_selected_functions(proto, names, inline_schema_functions=True)
        except RuntimeError as error:
            raise StageError(
                f"onnx cannot replace {', '.join(composed)} by simpler operators: {brief(error)}",
                fix="export the model to an older operator set, which has only the simpler ones",
            ) from error
    return proto


def _module(
    run: FirstRun, entries: Sequence[int], results: Sequence[Value]
) -> "tuple[torch.nn.Module, dict[int, str]]":
    import torch

    read = {key for step in run.steps for key in step.inputs} | {value.key for value in results}
    constants = [value for value in run.values if value.known and value.key in read]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for value in constants:
                self.register_buffer(f"constant_{value.key}", value.tensor.detach().clone())

        def forward(self, *inputs: torch.Tensor) -> Any:
            values: dict[int, Any] = dict(zip(entries, inputs, strict=True))
            values |= {value.key: getattr(self, f"constant_{value.key}") for value in constants}
            for step in run.steps:
                called = [
                    step.arrays.get(at, None if key is None else values[key])
                    for at, key in enumerate(step.inputs)
                ]
                made = step.call(*called, **step.options)
                values.update(zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False))
            found = tuple(values[value.key] for value in results)
            return found[0] if len(found) == 1 else found

    network = Network().eval()
    names = {}
    for value in constants:
        if value.tensor.numel():  # an empty one has no address
            address = getattr(network, f"constant_{value.key}").data_ptr()
            own = plain(value.name) or f"constant_{value.key}"
            names[address] = run.labels.get(value.key) or weight_name(own, "value")
    return network, names
