"""Half-precision conversion of an exported program for XNNPACK."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph.operators import CONVOLUTIONS
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    from torch.fx import GraphModule

LARGEST = 65504.0
"""Largest finite float16."""


class QuantizeFloat16Executorch(Stage):
    """Compute in half precision: weights, activations and arithmetic; inputs and outputs stay float32.

    ExecuTorch still stores convolution weights as float32, and XNNPACK rounds them on loading: convolutions
    become faster on CPUs with half-precision arithmetic, but not smaller.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "exported_program_xnnpack"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"float16"})}
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "executorch", "torchao")
    extra: ClassVar[str | None] = "executorch"
    revision: ClassVar[int] = 2

    scheme: Literal["float16"] = Field("float16", description="half-precision weights and arithmetic")
    io: Literal["float32", "int8"] = Field("float32", description="dtype of inputs and outputs; float32 only")
    layers: dict[str, Literal["float16", "float32"]] = Field(
        {}, description="precision by layer name or pattern, such as {linear: float32}"
    )

    @field_validator("io")
    @classmethod
    def _float_only(cls, io: str) -> str:
        if io != "float32":
            raise ValueError(f"the inputs and outputs of float16 are float32, not {io}")
        return io

    def run(self, model: Model, context: Context) -> Model:
        """Convert one program.

        Raises:
            StageError: the program cannot be read, a pattern matches no layer, or a constant is too large
                for half precision.
        """
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        quantizable = torch_overrides.quantizable(graph)
        requested = torch_overrides.precisions(quantizable, self.layers)
        full_precision = {layer.node for layer in quantizable if requested.get(layer.name) == "float32"}
        halved = _in_half_precision(graph, full_precision, inputs, outputs)
        if any(layer.kind in CONVOLUTIONS and layer.node not in full_precision for layer in quantizable):
            context.note(
                "float16: ExecuTorch stores convolution weights as float32, so these layers compute in half "
                "precision but save no bytes"
            )
        path = context.folder / "model.pt2"
        torch_program.write(torch_program.export(halved, inputs), path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)


def _in_half_precision(
    graph: "GraphModule",
    full_precision: set[str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> "GraphModule":
    """Copy the graph in half precision, except the nodes in ``full_precision``, which stay float32."""
    import torch

    root = torch.nn.Module()
    result = torch.fx.Graph()
    copies: dict[Any, Any] = {}
    types = iter([spec.dtype for spec in inputs])

    def cast(node: Any, dtype: Any) -> Any:
        return result.call_function(torch.ops.aten.to.dtype, (node, dtype))

    def constant(node: Any, *, full: bool) -> Any:
        name = f"{node.target}_float32" if full else str(node.target)
        value = graph.get_buffer(str(node.target))
        root.register_buffer(name, value if full else _half(value, name))
        return result.get_attr(name)

    for node in graph.graph.nodes:
        if node.op == "get_attr":
            # Constants used only by float32 nodes are copied with these nodes, at full precision.
            if any(user.name not in full_precision for user in node.users):
                copies[node] = constant(node, full=False)
        elif node.op == "placeholder":
            copies[node] = result.node_copy(node)
            # Integer inputs, such as token indices, are not converted.
            if next(types) == "float32":
                copies[node] = cast(copies[node], torch.float16)
        elif node.op == "output":
            several = isinstance(node.args[0], tuple)
            results = [copies[leaf] for leaf in (node.args[0] if several else node.args)]
            pairs = zip(results, outputs, strict=True)
            full = [cast(leaf, torch.float32) if spec.dtype == "float32" else leaf for leaf, spec in pairs]
            result.output(tuple(full) if several else full[0])
        elif node.name in full_precision:
            # Weight and bias follow the input in the arguments of every layer.
            weights = [argument and constant(argument, full=True) for argument in node.args[1:3]]
            args = (cast(copies[node.args[0]], torch.float32), *weights, *node.args[3:])
            copies[node] = cast(result.call_function(node.target, args), torch.float16)
        else:
            copies[node] = result.node_copy(node, lambda old: copies[old])
    return torch.fx.GraphModule(root, result).eval()


def _half(value: Any, name: str) -> Any:
    if not value.is_floating_point():
        return value
    if float(value.abs().max() if value.numel() else 0) > LARGEST:
        raise StageError(
            f"{name} contains values beyond {LARGEST:g}, the largest number in half precision",
            fix="choose another scheme, or keep that layer in float32 with 'layers'",
        )
    return value.half()
