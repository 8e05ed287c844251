"""An exported program in half precision for XNNPACK."""

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


class QuantizeFloat16Executorch(Stage):
    """Weights, activations and arithmetic in half precision, between inputs and outputs in float32.

    ExecuTorch writes the weights of convolutions as float32 all the same, and XNNPACK rounds them when it
    loads the file: such layers become faster where the CPU has half precision, and no smaller.
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
            raise ValueError(f"float16 takes and gives float32, not {io}")
        return io

    def run(self, model: Model, context: Context) -> Model:
        """Convert one program.

        Raises:
            StageError: when the program cannot be read, a pattern fits no layer, or a constant is too large
                for half precision.
        """
        graph, inputs = torch_program.plain_graph(model)
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        every = torch_overrides.quantizable(graph)
        asked = torch_overrides.precisions(every, self.layers)
        kept = {layer.node for layer in every if asked.get(layer.name) == "float32"}
        half = _halved(graph, kept, inputs, outputs)
        if any(layer.kind in CONVOLUTIONS and layer.node not in kept for layer in every):
            context.note(
                "float16: ExecuTorch keeps the weights of convolutions as float32 in the file, which saves "
                "nothing; they are rounded to half precision when it is loaded, and compute in it"
            )
        path = context.folder / "model.pt2"
        torch_program.write(torch_program.export(half, inputs), path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)


def _halved(
    graph: "GraphModule", kept: set[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> "GraphModule":
    """The graph with every floating-point value in half precision, but for the layers called ``kept``."""
    import torch

    root = torch.nn.Module()
    result = torch.fx.Graph()
    known: dict[Any, Any] = {}
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
            if any(user.name not in kept for user in node.users):
                known[node] = constant(node, full=False)
        elif node.op == "placeholder":
            known[node] = result.node_copy(node)
            if next(types) == "float32":
                known[node] = cast(known[node], torch.float16)
        elif node.op == "output":
            several = isinstance(node.args[0], tuple)
            found = [known[leaf] for leaf in (node.args[0] if several else node.args)]
            pairs = zip(found, outputs, strict=True)
            full = [cast(leaf, torch.float32) if spec.dtype == "float32" else leaf for leaf, spec in pairs]
            result.output(tuple(full) if several else full[0])
        elif node.name in kept:
            weights = [argument and constant(argument, full=True) for argument in node.args[1:3]]
            args = (cast(known[node.args[0]], torch.float32), *weights, *node.args[3:])
            known[node] = cast(result.call_function(node.target, args), torch.float16)
        else:
            known[node] = result.node_copy(node, lambda old: known[old])
    return torch.fx.GraphModule(root, result).eval()


def _half(value: Any, name: str) -> Any:
    if not value.is_floating_point():
        return value
    if float(value.abs().max() if value.numel() else 0) > LARGEST:
        raise StageError(
            f"{name} holds values beyond {LARGEST:g}, the largest number of half precision",
            fix="choose another scheme, or leave that layer in float32 with 'layers'",
        )
    return value.half()
