"""A float ONNX graph in QDQ form, made by onnxruntime from ranges that are known already."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph import layers as onnx_layers

Activation: TypeAlias = Literal["uint8", "int8", "int16"]


class Making(NamedTuple):
    """What ``make`` is told beside the layers' precisions."""

    activation: Activation
    per_channel: bool = True
    reduce_range: bool = False


MERGED = ("Relu", "Clip")
"""What the library takes out where the range of an output does the same."""


def make(prepared: Path, ranges: Path, target: Path, plan: Mapping[str, str], making: Making) -> Any:
    """The graph with int8 weights; ``plan`` says of each layer ``int8``, ``int16`` or ``float32``.

    ``int16`` means 16 bits for what goes into the layer and comes out; its weights have 8 all the same.

    Raises:
        StageError: onnxruntime cannot do it.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # Left to itself the library ends with a warning about the pre-processing that was done before.
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8, "int16": QuantType.QInt16}
    other = {"int8": "int16"} if making.activation != "int16" else {"int16": "uint8", "int8": "uint8"}
    usual = "int16" if making.activation == "int16" else "int8"
    special = {name for name, precision in plan.items() if precision not in ("float32", usual)}
    options: dict[str, Any] = {}
    if special:
        kind = kinds[other["int8"]]
        options["TensorQuantOverrides"] = _overrides(prepared, plan, special, kind, kinds[making.activation])
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
            nodes_to_exclude=[name for name, precision in plan.items() if precision == "float32"],
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=str(ranges),
            extra_options=options,
        )
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise StageError(f"onnxruntime cannot quantize {prepared.name}: {error}") from error
    proto = onnx_model_file.load(target)
    onnx_model_file.strip(proto)
    raised = {name for name, precision in plan.items() if precision == "float32"}
    if raised:
        _read_float(proto, onnx_model_file.load(prepared), raised)
    return proto


def _read_float(model: Any, prepared: Any, raised: set[str]) -> None:
    """Let layers in float read what they read before, instead of what was quantized for them.

    Otherwise a tensor between two layers that no range suits could not be helped by raising either. The
    library removes a Relu whose work the range of its output does: it is put back for such a layer.
    """
    now = {output: node for node in model.graph.node for output in node.output}
    before = {node.name: node for node in prepared.graph.node}
    makers = {output: node for node in prepared.graph.node for output in node.output}
    constants = {tensor.name for tensor in prepared.graph.initializer}
    given = {value.name for value in model.graph.input}
    nodes: list[Any] = []
    there = given | {output for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in raised:
            for position, name in enumerate(before[node.name].input):
                if name in constants or not name:
                    continue
                gone = makers.get(name)
                is_merged = gone is not None and gone.op_type in MERGED and name in now
                if gone is not None and is_merged and now[name].op_type != gone.op_type:
                    # Its name went over to what it read: the sum before a Relu is called as the Relu was.
                    gone = type(gone).FromString(gone.SerializeToString())
                    gone.input[0], name = name, f"{name}_in_float"
                    gone.output[0] = name
                if name not in there and gone is not None and set(gone.input[:1]) <= there:
                    nodes.append(gone)
                    there.add(name)
                if name in there:
                    node.input[position] = name
        nodes.append(node)
    _replace_nodes(model, nodes)


def _replace_nodes(model: Any, nodes: list[Any]) -> None:
    """Put these nodes in, without quantizers whose result nobody reads any more."""
    ends = {value.name for value in model.graph.output}
    while True:
        read = ends | {name for node in nodes for name in node.input}
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
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)


def _overrides(
    prepared: Path, plan: Mapping[str, str], special: set[str], kind: Any, usual: Any
) -> dict[str, list[dict[str, Any]]]:
    """Tensors around the special layers get ``kind``, and are converted for everybody else who reads them."""
    model = onnx_model_file.load(prepared)
    constants = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, set[str]] = {}
    touched: dict[str, None] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
        if node.name in special:
            touched |= dict.fromkeys(n for n in (*node.input, *node.output) if n and n not in constants)
    result = {}
    for name in touched:
        override: dict[str, Any] = {"quant_type": kind}
        others = {reader for reader in readers.get(name, set()) if reader not in special}
        if others:
            override["convert"] = {"quant_type": usual, "recv_nodes": others}
        result[name] = [override]
    return result


def verify(proto: Any, plan: Mapping[str, str], scheme: str) -> None:
    """Make sure that every layer of the file has the types that its precision stands for.

    Raises:
        StageError: with the layers that the quantizer passed over.
    """
    activations = {"int8": ("uint8", "int8"), "int16": ("int16",), "float32": ("float32",)}
    found = {layer.name: layer for layer in onnx_layers.read(proto)}
    wrong = []
    for name, precision in plan.items():
        layer = found.get(name)
        if layer is None:
            wrong.append(f"{name} is gone")
        elif precision == "float32":
            if layer.weight != "float32":
                wrong.append(f"{layer.kind} {name} has {layer.weight} weights, not float32")
        elif not layer.weight.endswith("int8") and layer.weights:
            wrong.append(f"{layer.kind} {name} has {layer.weight} weights, not int8")
        elif layer.activation not in activations[precision]:
            wrong.append(f"{layer.kind} {name} computes in {layer.activation}, not {precision}")
    onnx_layers.refuse(
        wrong, scheme, "give these layers another precision in 'layers', such as float32, or replace them"
    )
