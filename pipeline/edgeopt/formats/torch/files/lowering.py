"""From an exported program to the bytes of an ExecuTorch program whose kernels are XNNPACK's."""

from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats.torch.lab import engine as torch_engine

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def lower(program: "ExportedProgram") -> bytes:
    """Give XNNPACK what it knows; the rest runs on portable kernels.

    Raises:
        StageError: ExecuTorch cannot do it, or a quantized layer would compute in float.
    """
    with torch_engine.quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            if left := _left(edge.exported_program()):
                raise StageError(
                    f"XNNPACK has no such kernel for {', '.join(left)}: they would compute in float",
                    fix="say so in the recipe, with layers: {NAME: float32}",
                )
            lowered = edge.to_executorch()
        except (RuntimeError, ValueError, NotImplementedError, KeyError, AssertionError) as error:
            raise StageError(
                f"ExecuTorch cannot lower the model: {torch_engine.brief(error)}",
                fix="replace the operator it names, or leave executorch out of 'formats'",
            ) from error
    return bytes(lowered.buffer)


def _left(program: Any) -> list[str]:
    """What computes with quantized weights outside XNNPACK, by the names of these weights."""
    signature = program.graph_signature
    constants = signature.inputs_to_parameters | signature.inputs_to_buffers
    constants |= signature.inputs_to_lifted_tensor_constants
    return [
        constants[node.args[0].name]
        for node in program.graph.nodes
        if node.op == "call_function"
        and "dequantize" in str(node.target)
        and getattr(node.args[0], "name", "") in constants
    ]
