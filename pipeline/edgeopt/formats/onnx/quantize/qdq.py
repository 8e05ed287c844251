"""Static quantization of ONNX graphs to QDQ form by onnxruntime, with precomputed ranges."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import in_float as onnx_in_float
from edgeopt.formats.onnx.graph import layers as onnx_layers
from edgeopt.formats.onnx.quantize import recurrent as onnx_recurrent

Activation: TypeAlias = Literal["uint8", "int8", "int16"]


class Making(NamedTuple):
    """Options of ``make`` that apply to the whole graph."""

    activation: Activation
    per_channel: bool = True
    reduce_range: bool = False


MERGED = ("Relu", "Clip")
"""Operators that onnxruntime removes if the range of their output clips the same values."""


def make(
    prepared: Path,
    ranges: Path,
    target: Path,
    plan: Mapping[str, str],
    making: Making,
    in_float: Sequence[str] = (),
) -> Any:
    """Quantize a graph; ``plan`` assigns ``int8``, ``int16`` or ``float32`` to each layer.

    The input and output of an ``int16`` layer have 16 bits; all quantized weights have 8 bits. Nodes
    ``in_float``, which have no weights, stay in float.

    Raises:
        StageError: onnxruntime cannot quantize the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # onnxruntime always warns that the model should be pre-processed, although it has been.
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8, "int16": QuantType.QInt16}
    # At most two activation types occur in a graph: the usual one, and the other for special layers.
    other = {"int8": "int16"} if making.activation != "int16" else {"int16": "uint8", "int8": "uint8"}
    usual = "int16" if making.activation == "int16" else "int8"
    special = {name for name, precision in plan.items() if precision not in ("float32", usual)}
    options: dict[str, Any] = {}
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in onnx_in_float.grouped_transposed_convolutions(onnx_model_file.load(prepared)):
        overrides[node.input[1]] = [{"quant_type": QuantType.QInt8, "symmetric": True}]
    if special:
        kind = kinds[other["int8"]]
        overrides |= _overrides(prepared, plan, special, kind, kinds[making.activation])
    if overrides:
        options["TensorQuantOverrides"] = overrides
    try:
        quantize_static(
            str(prepared),
            str(target),
            None,
            quant_format=QuantFormat.QDQ,
            per_channel=making.per_channel,
            reduce_range=making.reduce_range,
            activation_type=kinds[making.activation],
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*(name for name, kind in plan.items() if kind == "float32"), *in_float],
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=str(ranges),
            extra_options=options,
        )
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise StageError(f"onnxruntime cannot quantize {prepared.name}: {error}") from error
    proto = onnx_model_file.load(target)
    onnx_model_file.strip(proto)
    onnx_recurrent.store_int8(proto, {name for name, precision in plan.items() if precision != "float32"})
    raised = {name for name, precision in plan.items() if precision == "float32"}
    if raised:
        _read_float(proto, onnx_model_file.load(prepared), raised)
    return proto


def _read_float(model: Any, prepared: Any, raised: set[str]) -> None:
    """Connect the inputs of float layers to the float tensors, instead of dequantized ones.

    Otherwise a tensor that quantizes badly would stay quantized even if the layers that read it are float.
    onnxruntime removes a Relu that the range of its output replaces: it is restored for such a layer.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    original = {node.name: node for node in prepared.graph.node}
    original_producers = {output: node for node in prepared.graph.node for output in node.output}
    constants = {tensor.name for tensor in prepared.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    nodes: list[Any] = []
    available = inputs | {output for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in raised:
            for position, name in enumerate(original[node.name].input):
                if name in constants or not name:
                    continue
                merged = original_producers.get(name)
                is_merged = merged is not None and merged.op_type in MERGED and name in producers
                if merged is not None and is_merged and producers[name].op_type != merged.op_type:
                    # The node before a removed Relu took over the name of its output, so the restored Relu
                    # reads that name and needs another one for its own output.
                    merged = type(merged).FromString(merged.SerializeToString())
                    merged.input[0], name = name, f"{name}_in_float"
                    merged.output[0] = name
                # Inserted before its first reader, after its input: ONNX requires topological order.
                if name not in available and merged is not None and set(merged.input[:1]) <= available:
                    nodes.append(merged)
                    available.add(name)
                if name in available:
                    node.input[position] = name
        nodes.append(node)
    _replace_nodes(model, nodes)


def _replace_nodes(model: Any, nodes: list[Any]) -> None:
    """Replace the nodes of a graph, without quantizers and initializers that are no longer read."""
    outputs = {value.name for value in model.graph.output}
    # Repeated, because removing a DequantizeLinear may leave its QuantizeLinear without readers.
    while True:
        read = outputs | {name for node in nodes for name in node.input}
        kept = [
            node
            for node in nodes
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.output[0] in read
        ]
        if len(kept) == len(nodes):
            break
        nodes = kept
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, constants)):
        # Copied first: the elements belong to the field that is cleared.
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)


def _overrides(
    prepared: Path, plan: Mapping[str, str], special: set[str], kind: Any, usual: Any
) -> dict[str, list[dict[str, Any]]]:
    """Overrides that give the inputs and outputs of special layers the type ``kind``.

    For all other readers such a tensor is converted to ``usual``.
    """
    model = onnx_model_file.load(prepared)
    constants = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, set[str]] = {}
    special_tensors: dict[str, None] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
        if node.name in special:
            activations = (n for n in (*node.input, *node.output) if n and n not in constants)
            special_tensors |= dict.fromkeys(activations)
    result = {}
    for name in special_tensors:
        override: dict[str, Any] = {"quant_type": kind}
        others = {reader for reader in readers.get(name, set()) if reader not in special}
        if others:
            override["convert"] = {"quant_type": usual, "recv_nodes": others}
        result[name] = [override]
    return result


def verify(proto: Any, plan: Mapping[str, str], scheme: str) -> None:
    """Check that every layer of the file has the types of its precision in ``plan``.

    Raises:
        StageError: the quantizer skipped a layer; the message names these layers.
    """
    activations = {"int8": ("uint8", "int8"), "int16": ("int16",), "float32": ("float32",)}
    found = {layer.name: layer for layer in onnx_layers.read(proto)}
    wrong = []
    for name, precision in plan.items():
        layer = found.get(name)
        if layer is None:
            wrong.append(f"{name} is missing")
        elif precision == "float32":
            if layer.weight != "float32":
                wrong.append(f"{layer.kind} {name} has {layer.weight} weights, not float32")
        elif not layer.weight.endswith("int8") and layer.weights:
            wrong.append(f"{layer.kind} {name} has {layer.weight} weights, not int8")
        elif layer.kind not in onnx_layers.RECURRENT and layer.activation not in activations[precision]:
            wrong.append(f"{layer.kind} {name} computes in {layer.activation}, not {precision}")
    onnx_layers.refuse(
        wrong, scheme, "set another precision for these layers in 'layers', such as float32, or replace them"
    )
