"""Keras and SavedModel to ONNX, through tf2onnx."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.layer_names import calls, keras_layer
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.formats.onnx.graph.layers import RECURRENT
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages import _tf2onnx
from edgeopt.stages._keras import KerasStage

BY_TORCH = (
    "replace the layer, or convert by way of PyTorch, with a variant such as "
    "by_torch: {stages: [keras_to_exported_program, exported_program_to_onnx]}"
)
"""A way out for layers that tf2onnx does not know."""
COUNTER = re.compile(r"__\d+(?=\D|$)|:\d+$|(?<=^einsum)\d+|(?<=_frozen)_\d+")
"""Counters that tf2onnx and TensorFlow keep across all conversions of a process, and output indices."""
PARTS = dict.fromkeys(sorted(onnx_model_file.WEIGHTED), ("weights", "bias"))
"""Roles of the second and third input, where these are constants."""
BIAS = re.compile(r"/BiasAdd(_\d+)?$")
OWN_INPUT = re.compile(r"(.+)/PartitionedCall/transpose(:0)?")
"""The input of a recurrent tf_keras layer, transposed to the time-major order of the operator."""


class KerasToOnnx(KerasStage):
    """Convert with ``tf2onnx.convert.from_function``, with the batch fixed to 1.

    Inputs and outputs keep the names, the order and the layout of the source.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras", "tf_keras", "saved_model"})
    produces: ClassVar[str] = "onnx"
    worker: ClassVar[Worker] = "tensorflow"
    cost: ClassVar[int] = 4
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "tf_keras", "h5py", "tf2onnx", "onnx")
    extra: ClassVar[str | None] = "keras,onnx"
    revision: ClassVar[int] = 5

    opset: int = Field(17, ge=13, le=18, description="version of the ONNX operator set")

    def run(self, model: Model, context: Context) -> Model:
        """Convert one model.

        Raises:
            StageError: the model cannot be loaded, or contains an operator that tf2onnx does not support.
        """
        import onnx
        import tensorflow as tf

        program = keras_loading.load_program(model, self.trust, self.code)
        context.progress("converting to ONNX")
        function = keras_loading.traced(program, model)
        try:
            with _stable_names():
                proto = _tf2onnx.convert(function, self.opset)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            NotImplementedError,
            tf.errors.OpError,
        ) as error:
            raise StageError(
                f"tf2onnx cannot convert {model.path.name}: {str(error)[:500]}",
                fix=BY_TORCH,
            ) from error
        _check_operators(proto.graph, model.path.name)
        _name(proto, program)
        path = context.folder / "model.onnx"
        onnx.checker.check_model(proto)
        onnx.save(proto, str(path))
        inputs, outputs = onnx_model_file.specs(proto)
        inputs = tuple(
            spec.model_copy(update={"layout": source.layout})
            for spec, source in zip(inputs, program.inputs, strict=True)
        )
        return Model(
            format="onnx",
            path=path,
            inputs=inputs,
            outputs=outputs,
            transposes=onnx_model_file.count(proto, "Transpose"),
        )


def _check_operators(graph: Any, name: str) -> None:
    """Reject what tf2onnx has left as it was, an operator of TensorFlow.

    Raises:
        StageError: with the operator and its layer.
    """
    from onnx import defs

    for node in graph.node:
        if not node.domain and not defs.has(node.op_type):
            layer = keras_layer(node.name)
            where = f" of layer {layer!r}" if layer else f" ({node.name})"
            raise StageError(
                f"tf2onnx cannot convert {name}: ONNX has no counterpart of {node.op_type}{where}",
                fix=BY_TORCH,
            )
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _check_operators(attribute.g, name)


@contextmanager
def _stable_names() -> Iterator[None]:
    """Within this context, tf2onnx names a convolution with fused bias after the one without."""
    from tf2onnx import utils
    from tf2onnx.graph import Graph

    make = Graph.make_node

    def make_named(graph: Any, *args: Any, **options: Any) -> Any:
        if len(args) == 2 and args[0] in onnx_model_file.WEIGHTED and options.get("name") is None:
            kind, inputs = args
            same = (n for n in graph.get_nodes() if n.type == kind and list(n.input)[:2] == list(inputs)[:2])
            if before := next(same, None):
                options["name"] = utils.make_name(before.name)
        return make(graph, *args, **options)

    Graph.make_node = make_named
    try:
        yield
    finally:
        Graph.make_node = make


def _name(model: Any, program: keras_loading.Program) -> None:
    """Name nodes and tensors after the layers, without counters that depend on earlier conversions.

    A convolution or matrix product, its output and its weights are named after its Keras layer, where that
    is known. Inputs and outputs are put in the order of the source.
    """
    graph = model.graph
    graph.name = "model"
    graph.doc_string = ""
    names: dict[str, str] = {}
    taken = {*(spec.name for spec in program.inputs), *program.outputs}
    for value in (*graph.input, *graph.output):
        names[value.name] = value.name
    layers = _layers(graph)
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if layer := layers.get(node.name):
            roles = zip(node.input[1:], PARTS.get(node.op_type, ()), strict=False)
            parts = [(name, f"{layer}/{part}") for name, part in roles if name in constants]
            for name, new_name in [(node.output[0], layer), *parts]:
                if name not in names and new_name not in taken:
                    names[name] = new_name
                    taken.add(new_name)
    _collect(graph, names, taken)
    _rename(graph, names, layers, set(layers.values()))
    for values, order in (
        (graph.input, [spec.name for spec in program.inputs]),
        (graph.output, list(program.outputs)),
    ):
        known = {value.name: value for value in values}
        if sorted(known) == sorted(order):
            ordered = [known[name] for name in order]
            copies = [type(value).FromString(value.SerializeToString()) for value in ordered]
            del values[:]
            values.extend(copies)


def _layers(graph: Any) -> dict[str, str]:
    """Keras layers of convolutions, matrix products and recurrent operators, by node name."""
    layers = {
        node.name: layer
        for node in graph.node
        if node.op_type in onnx_model_file.WEIGHTED | RECURRENT
        if (layer := _layer(node))
    }
    return dict(zip(layers, calls(layers.values()), strict=True))


def _layer(node: Any) -> str:
    """The Keras layer of a node.

    tf2onnx names a node after the last operator fused into it: a bias or a batch normalization. In the
    second case only the name of the weights identifies the layer; for recurrent operators, only the input.
    """
    if node.op_type in RECURRENT:
        match = OWN_INPUT.fullmatch(node.input[0])
        return keras_layer(f"{match[1]}/MatMul") if match else ""
    operations = (node.name, BIAS.sub("/MatMul", node.name), node.input[1])
    return next(filter(None, map(keras_layer, operations)), "")


def _clean(name: str, taken: set[str]) -> str:
    """``model/conv2d/BiasAdd__73:0`` becomes ``model/conv2d/BiasAdd``, with a number if that is taken."""
    base = COUNTER.sub("", name) or "tensor"
    result, number = base, 1
    while result in taken:
        number += 1
        result = f"{base}_{number}"
    taken.add(result)
    return result


def _collect(graph: Any, names: dict[str, str], taken: set[str]) -> None:
    for node in graph.node:
        for output in node.output:
            if output and output not in names:
                names[output] = _clean(output, taken)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for value in attribute.g.input:
                    names.setdefault(value.name, _clean(value.name, taken))
                _collect(attribute.g, names, taken)
    for node in graph.node:
        for name in node.input:
            # Constants are named in order of use, which does not depend on their present names.
            if name and name not in names:
                names[name] = _clean(name, taken)


def _rename(graph: Any, names: dict[str, str], layers: dict[str, str], used: set[str]) -> None:
    for node in graph.node:
        node.name = layers.get(node.name) or _clean(node.name or node.op_type, used)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                attribute.g.name = "body"
                _rename(attribute.g, names, layers, used)
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    # A deterministic order, so that equal models give equal bytes.
    ordered = sorted(graph.initializer, key=lambda tensor: tensor.name)
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in ordered]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    del graph.value_info[:]  # intermediate shapes: runtimes infer them anew
