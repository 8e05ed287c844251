"""An ONNX file to an exported program."""

from collections.abc import Sequence
from typing import ClassVar

from edgeopt.errors import StageError, UsageError
from edgeopt.formats.onnx.files import header as onnx_header
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.onnx_operators import arithmetic
from edgeopt.formats.torch.onnx_operators import carried as onnx_carried
from edgeopt.formats.torch.onnx_operators import network as onnx_network
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker


class OnnxToExportedProgram(Stage):
    """Compute each node with PyTorch, at a batch of 1, and export the result.

    Shapes, and branches whose conditions do not depend on the inputs, are evaluated beforehand. Half and
    double precision become float32. Layers keep the names of their nodes.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "exported_program"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("onnx", "torch", "torchao")
    extra: ClassVar[str | None] = "torch,onnx"
    revision: ClassVar[int] = 2
    before: ClassVar[frozenset[str]] = frozenset({"quantize"})
    # A Keras model reaches PyTorch by its own backend, layer by layer; ONNX is for those that cannot.
    preference: ClassVar[int] = -2

    @classmethod
    def check_source(cls, source: Model) -> None:
        """Reject a file with operators that are not carried.

        Raises:
            UsageError: names the node, its operator and the way out.
        """
        for node in onnx_header.nodes(source.path):
            if refusal := onnx_carried.refusal(node.operator, node.domain):
                raise UsageError(
                    f"node {node.name!r} ({node.operator}) cannot be converted to PyTorch: {refusal.cause}",
                    fix=refusal.fix,
                )

    def run(self, model: Model, context: Context) -> Model:
        """Convert one model.

        Raises:
            StageError: the file is not an ONNX model, an operator is not supported, or the inputs do not
                match.
        """
        proto = onnx_model_file.load(model.path)
        own, outputs = onnx_model_file.specs(proto)
        inputs = _inputs(own, model.inputs)
        if remark := torch_specs.remark_fixed(inputs):
            context.note(remark)
        context.progress("reading operators")
        module, constants = onnx_network.build(proto, inputs)
        context.progress("exporting")
        described = model.model_copy(update={"outputs": model.outputs or outputs})
        return torch_program.save_module(module, context.folder / "model.pt2", described, inputs, constants)


def _inputs(own: Sequence[TensorSpec], described: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs at fixed sizes: as the recipe describes them, which must be possible in the file.

    Raises:
        StageError: a size is free, or contradicts the file.
    """
    given = tuple(described) or tuple(own)
    if len(given) != len(own):
        raise StageError(
            f"the model takes {len(own)} inputs, but {len(given)} are described",
            fix=f"describe one input for each of: {', '.join(spec.name for spec in own)}",
        )
    fixed = []
    for spec, file in zip(given, own, strict=True):
        merged = spec.model_copy(
            update={
                "shape": tuple(a if b is None else b for a, b in zip(file.shape, spec.shape, strict=False))
            }
        )
        merged = torch_specs.fix_batch(merged)
        if len(spec.shape) != len(file.shape) or any(
            a is not None and a != b for a, b in zip(file.shape, merged.shape, strict=True)
        ):
            raise StageError(
                f"input {spec.name!r} is described as {list(spec.shape)}, but the file declares "
                f"{list(file.shape)}",
                fix="correct 'inputs' of the model in the recipe",
            )
        fixed.append(merged.model_copy(update={"dtype": arithmetic.computed(spec.dtype)}))
    return tuple(fixed)
