"""Connections to graph outputs that ai-edge-quantizer makes wrong.

The library marks a reader outside of the graph with the index -1, and then treats the last operator as that
reader. When it converts a tensor for some readers, it also replaces the tensor as a graph output.
"""

from collections.abc import Mapping

import numpy as np

from edgeopt.formats.tflite.files.graphs import BETWEEN_TYPES, Operation, Tensor, graphs_of
from edgeopt.formats.tflite.files.model_file import IDENTIFIER, TfliteFile, parse
from edgeopt.formats.tflite.files.schema import SCHEMA
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack


def rewired(content: bytes, source: TfliteFile, *, float_outputs: bool) -> bytes:
    """A quantized file with every operator and output connected to the tensor of its own type.

    An operator that computes in integers reads an output of the graph before its DEQUANTIZE. With
    ``float_outputs``, the graph does not return what a QUANTIZE made for another reader. The signature
    names the outputs in the order of the float file, ``source``.
    """
    file = parse(content, source.name)
    graph = graphs_of(file)[0]
    producers = {tensor.number: operation for operation in graph.operations for tensor in operation.outputs}
    before = [tensor.number for tensor in graph.outputs]
    after = [_unconverted(tensor, producers).number for tensor in graph.outputs] if float_outputs else before
    main, *others = file.model.tables("subgraphs")
    operators = tuple(
        operator.but(inputs=_vector(inputs))
        if (inputs := _inputs(operation, producers, before))
        else operator
        for operator, operation in zip(main.tables("operators"), graph.operations, strict=True)
    )
    signatures = _signatures(file, source, after)
    if after == before and operators == main.tables("operators") and not signatures:
        return content
    main = main.but(operators=operators, outputs=_vector(after))
    replaced = {"signature_defs": signatures} if signatures else {}
    return pack(file.model.but(subgraphs=(main, *others), **replaced), SCHEMA, IDENTIFIER)


def _inputs(operation: Operation, producers: Mapping[int, Operation], outputs: list[int]) -> list[int] | None:
    """The right inputs of an operator that computes in integers; None if they are its own."""
    if operation.kind in BETWEEN_TYPES or not _computes_in_integers(operation):
        return None
    own = [-1 if tensor is None else tensor.number for tensor in operation.inputs]
    right = [
        producers[number].present[0].number
        if number in outputs and number in producers and producers[number].kind == "DEQUANTIZE"
        else number
        for number in own
    ]
    return None if right == own else right


def _unconverted(output: Tensor, producers: Mapping[int, Operation]) -> Tensor:
    """The float form of an output that is the result of a QUANTIZE."""
    producer = producers.get(output.number)
    if producer is None or producer.kind != "QUANTIZE":
        return output
    source = producer.present[0]
    if source.dtype == "float32":
        return source
    floats = (each for each in producers.values() if each.kind == "DEQUANTIZE")
    return next((each.outputs[0] for each in floats if each.present[0] is source), output)


def _signatures(file: TfliteFile, source: TfliteFile, outputs: list[int]) -> tuple[Table, ...]:
    """The signatures with the names of these outputs; empty if they are right."""
    signatures, given = (each.model.tables("signature_defs") for each in (file, source))
    left: dict[int, list[int]] = {}
    for number, output in zip(source.model.tables("subgraphs")[0].numbers("outputs"), outputs, strict=True):
        left.setdefault(number, []).append(output)
    known = given[0].tables("outputs") if given else ()
    if sorted(entry.integer("tensor_index") for entry in known) != sorted(k for k in left for _ in left[k]):
        return ()
    named = {entry.text("name"): left[entry.integer("tensor_index")].pop(0) for entry in known}
    entries = signatures[0].tables("outputs") if signatures else ()
    found = {entry.text("name"): entry.integer("tensor_index") for entry in entries}
    if found == named or found.keys() != named.keys():
        return ()
    right = tuple(entry.but(tensor_index=named[entry.text("name")]) for entry in entries)
    return (signatures[0].but(outputs=right), *signatures[1:])


def _computes_in_integers(operation: Operation) -> bool:
    """Whether the results are quantized, or are truth values or indices of quantized operands."""
    if any(map(_is_quantized, operation.outputs)):
        return True
    has_float = any(tensor.dtype == "float32" for tensor in operation.outputs)
    return not has_float and any(map(_is_quantized, operation.present))


def _is_quantized(tensor: Tensor) -> bool:
    return tensor.scale is not None and tensor.dtype.startswith("int")


def _vector(numbers: list[int]) -> Vector:
    return Vector("i32", np.array(numbers, "<i4").tobytes())
