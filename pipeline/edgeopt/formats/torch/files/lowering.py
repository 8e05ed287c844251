"""Lowering of an exported program to an ExecuTorch program with the XNNPACK delegate."""

from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats.torch.lab import engine as torch_engine

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def lower(program: "ExportedProgram") -> bytes:
    """Delegate the supported operators to XNNPACK; the rest runs on portable kernels.

    Returns:
        The contents of a ``.pte`` file.

    Raises:
        StageError: ExecuTorch cannot lower the program, or a quantized layer would compute in float.
    """
    with torch_engine.quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            # An operator that the partitioner rejects falls back to dequantize and float without a warning.
            if fallbacks := _float_fallbacks(edge.exported_program()):
                raise StageError(
                    f"XNNPACK has no int8 kernel for {', '.join(fallbacks)}: they would compute in float",
                    fix="declare this in the recipe with layers: {NAME: float32}",
                )
            lowered = edge.to_executorch()
        except (RuntimeError, ValueError, NotImplementedError, KeyError, AssertionError) as error:
            raise StageError(
                f"ExecuTorch cannot lower the model: {torch_engine.brief(error)}",
                fix="replace the operator that the message names, or remove executorch from 'formats'",
            ) from error
    return bytes(lowered.buffer)


def _float_fallbacks(program: Any) -> list[str]:
    """Names of the quantized weights that are dequantized outside the delegate."""
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
