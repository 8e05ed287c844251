"""Editable TFLite graphs, and interpreters of edited copies."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import BETWEEN_TYPES, DTYPES
from edgeopt.formats.tflite.files.model_file import IDENTIFIER
from edgeopt.model import Array
from edgeopt.plugin.layer_pair import Grid, Weights

CHANNELS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
"""Axis of the output channels in the weights of each operator kind."""


class EditedFile:
    """The main graph of a file as mutable objects, with the buffers stored after the tables inlined."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        content = path.read_bytes()
        if content[4:8] != IDENTIFIER:
            raise StageError(f"{path.name} is not a TFLite model: the identifier TFL3 is missing")
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        for buffer in self.model.buffers:
            if buffer.offset > 1 and buffer.size:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            # Offsets into this file would be wrong in the packed copies.
            buffer.offset = buffer.size = 0
        self.graph = self.model.subgraphs[0]
        self.operators = self.graph.operators
        self.names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self.keys = _unique([tensor.name.decode(errors="replace") for tensor in self.graph.tensors])
        self.producer = {int(t): i for i, at in enumerate(self.operators) for t in at.outputs}
        # Conversions between types have no counterpart in the float file.
        self.computing = [i for i, at in enumerate(self.operators) if self.kind(at) not in BETWEEN_TYPES]

    def kind(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return str(self.names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM"))

    def constant(self, index: int) -> bool:
        """Whether a tensor is stored in the file, or converted from a stored one."""
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        if data is not None and len(data):
            return True
        at = self.producer.get(index)
        if at is None or self.kind(self.operators[at]) not in BETWEEN_TYPES:
            return False
        return self.constant(int(self.operators[at].inputs[0]))

    def variable_inputs(self, operator: int) -> list[int]:
        """Indices of the inputs of an operator that depend on the sample."""
        inputs = self.operators[operator].inputs
        return [slot for slot, index in enumerate(inputs) if index >= 0 and not self.constant(int(index))]

    def shape(self, operator: int) -> tuple[int, ...]:
        """The output shape of an operator."""
        return tuple(self.graph.tensors[self.operators[operator].outputs[0]].shape)

    def grid(self, index: int) -> Grid | None:
        """The quantization grid of a tensor; None if it is not quantized per tensor."""
        tensor = self.graph.tensors[index]
        scale, zero_point = _scale(tensor)
        return Grid.of(scale, zero_point, DTYPES[tensor.type]) if scale else None

    def entry_grid(self, index: int) -> Grid | None:
        """The grid of a graph input; for a float input, the grid of the QUANTIZE that reads it."""
        if (grid := self.grid(index)) is not None:
            return grid
        readers = [at for at in self.operators if index in at.inputs and self.kind(at) == "QUANTIZE"]
        return self.grid(int(readers[0].outputs[0])) if readers else None

    def weights(self, operator: Any) -> Weights | None:
        """The int8 weights of a convolution or dense layer; None for other operators and types."""
        axis = CHANNELS.get(self.kind(operator))
        if axis is None or not self.constant(int(operator.inputs[1])):
            return None
        tensor = self.graph.tensors[operator.inputs[1]]
        scale = None if tensor.quantization is None else tensor.quantization.scale
        if DTYPES[tensor.type] != "int8" or scale is None:
            return None
        stored = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8).view(np.int8)
        zero = np.asarray(tensor.quantization.zeroPoint if tensor.quantization.zeroPoint is not None else [0])
        # In a depthwise kernel, every output channel reads one input channel of its own.
        inner = None if axis == 3 else -1
        return Weights.of(stored.reshape(tuple(tensor.shape)), np.asarray(scale), zero, axis, inner)

    def stored(self, index: int, values: Array, *, of: Any = None) -> Array:
        """Quantize real numbers to the type of a tensor, by default of this file."""
        tensor = (of or self.model).subgraphs[0].tensors[index]
        dtype = np.dtype(DTYPES[tensor.type])
        scale, zero_point = _scale(tensor)
        values = values.reshape(tuple(tensor.shape))
        if not scale or values.dtype == dtype:
            return values.astype(dtype)
        limits = np.iinfo(dtype)
        steps = np.rint(values.astype(np.float64) / scale) + zero_point
        clipped: Array = np.clip(steps, limits.min, limits.max).astype(dtype)
        return clipped

    def real(self, index: int, values: Array) -> Array:
        """Dequantize the values of a tensor."""
        scale, zero_point = _scale(self.graph.tensors[index])
        if not scale:
            return values
        return ((values.astype(np.float64) - zero_point) * scale).astype(np.float32)


def _scale(tensor: Any) -> tuple[float, int]:
    """Scale and zero point of an activation; scale 0 if it is not quantized per tensor."""
    parameters = tensor.quantization
    if parameters is None or parameters.scale is None or len(parameters.scale) != 1:
        return 0.0, 0
    has_zero_point = parameters.zeroPoint is not None and len(parameters.zeroPoint)
    return float(parameters.scale[0]), int(parameters.zeroPoint[0]) if has_zero_point else 0


def _unique(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        count = counts[name] = counts.get(name, 0) + 1
        unique.append(name if count == 1 else f"{name}#{count}")
    return unique


class EditedInterpreter:
    """An edited graph in LiteRT; tensors are identified by number."""

    def __init__(self, model: Any) -> None:
        import flatbuffers
        from ai_edge_litert.interpreter import Interpreter

        model.signatureDefs = None  # they refer to the original inputs and outputs
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        self.model = model
        self.inputs: dict[int, dict[int, int]] = {}
        """Per operator, the graph inputs that replace its own inputs, by input index."""
        self.errors: dict[str, int] = {}
        """Per tensor, the graph input that is added to it."""
        try:
            self.interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise StageError(f"LiteRT cannot load the graph split into its layers: {error}") from error
        self.details = {d["index"]: d for d in self.interpreter.get_input_details()}
        self.outputs = [d["index"] for d in self.interpreter.get_output_details()]

    def run(self, feeds: Mapping[int, Array]) -> dict[int, Array]:
        """Run the graph; returns all outputs. Inputs missing from ``feeds`` are zero."""
        for index, detail in self.details.items():
            value = feeds.get(index)
            if value is None:
                value = np.zeros(detail["shape"], detail["dtype"])
            self.interpreter.set_tensor(index, np.ascontiguousarray(value, detail["dtype"]))
        self.interpreter.invoke()
        return {index: self.interpreter.get_tensor(index) for index in self.outputs}


def whole(file: EditedFile) -> EditedInterpreter:
    """The graph with the outputs of all operators as graph outputs."""
    model = copy.deepcopy(file.model)
    graph = model.subgraphs[0]
    graph.outputs = [int(at.outputs[0]) for at in graph.operators if not file.constant(int(at.outputs[0]))]
    return EditedInterpreter(model)


def cut(file: EditedFile, operators: Sequence[int]) -> EditedInterpreter:
    """The graph reduced to these operators, each with graph inputs of its own."""
    model = copy.deepcopy(file.model)
    graph = model.subgraphs[0]
    replacements: dict[int, dict[int, int]] = {}
    for number in operators:
        operator = graph.operators[number]
        operator.inputs = [int(index) for index in operator.inputs]
        for slot in file.variable_inputs(number):
            replacement = _clone(graph, operator.inputs[slot], f"given {number} {slot}")
            operator.inputs[slot] = replacement
            replacements.setdefault(number, {})[slot] = replacement
    # Operators that unpack constants stay: the kept operators read their outputs.
    kept = set(operators) | {i for i, at in enumerate(graph.operators) if file.constant(int(at.outputs[0]))}
    graph.operators = [at for i, at in enumerate(graph.operators) if i in kept]
    graph.inputs = [number for slots in replacements.values() for number in slots.values()]
    graph.outputs = [int(file.operators[number].outputs[0]) for number in operators]
    interpreter = EditedInterpreter(model)
    interpreter.inputs = replacements
    return interpreter


def with_errors(file: EditedFile, keys: Sequence[str]) -> EditedInterpreter:
    """The graph with an ADD after each of these tensors, whose other operand is a graph input."""
    from ai_edge_litert import schema_py_generated as schema

    model = copy.deepcopy(file.model)
    graph = model.subgraphs[0]
    add = schema.OperatorCodeT()
    add.builtinCode = add.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    add.version = 1
    model.operatorCodes.append(add)
    errors: dict[str, int] = {}
    additions: dict[int, Any] = {}
    index_of = {key: index for index, key in enumerate(file.keys)}
    for key in keys:
        index = index_of[key]
        if DTYPES[graph.tensors[index].type] != "float32":
            continue
        raw, errors[key] = (_clone(graph, index, f"{what} {key}") for what in ("raw", "error"))
        if index in file.producer:
            at = graph.operators[file.producer[index]]
            at.outputs = [raw if out == index else int(out) for out in at.outputs]
            additions[file.producer[index]] = (raw, errors[key], index)
        else:
            # A graph input stays the input; its readers read the sum instead.
            for at in graph.operators:
                at.inputs = [raw if each == index else int(each) for each in at.inputs]
            # Negative numbers sort before all operators: the sum must precede its readers.
            additions[-1 - len(additions)] = (index, errors[key], raw)
    ordered = []
    # TFLite runs operators in file order, so each ADD goes right after the producer of its tensor.
    for number in [*sorted(n for n in additions if n < 0), *range(len(graph.operators))]:
        if number >= 0:
            ordered.append(graph.operators[number])
        if number in additions:
            first, second, out = additions[number]
            extra = schema.OperatorT()
            extra.opcodeIndex = len(model.operatorCodes) - 1
            extra.inputs, extra.outputs = [first, second], [out]
            extra.builtinOptionsType = schema.BuiltinOptions.AddOptions
            extra.builtinOptions = schema.AddOptionsT()
            ordered.append(extra)
    graph.operators = ordered
    graph.inputs = [*(int(i) for i in graph.inputs), *errors.values()]
    interpreter = EditedInterpreter(model)
    interpreter.errors = errors
    return interpreter


def _clone(graph: Any, index: int, name: str) -> int:
    """Append a copy of a tensor without content; returns its number."""
    tensor = copy.deepcopy(graph.tensors[index])
    tensor.name, tensor.buffer = name.encode(), 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
