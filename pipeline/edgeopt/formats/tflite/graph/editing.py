"""A TFLite file to be changed and run: its main graph as objects, and interpreters of changed copies."""

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
"""Axis of the output channels in the weights of an operator."""


class EditedFile:
    """The main graph of a file, to be changed at will; buffers that lay behind the tables are in it."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        content = path.read_bytes()
        if content[4:8] != IDENTIFIER:
            raise StageError(f"{path.name} is not a TFLite model: the identifier TFL3 is missing")
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        for buffer in self.model.buffers:
            if buffer.offset > 1 and buffer.size:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
        self.graph = self.model.subgraphs[0]
        self.operators = self.graph.operators
        self.names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self.keys = _unique([tensor.name.decode(errors="replace") for tensor in self.graph.tensors])
        self.producer = {int(t): i for i, at in enumerate(self.operators) for t in at.outputs}
        self.computing = [i for i, at in enumerate(self.operators) if self.kind(at) not in BETWEEN_TYPES]

    def kind(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return str(self.names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM"))

    def constant(self, index: int) -> bool:
        """Whether a tensor is in the file, or made of one that is."""
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        if data is not None and len(data):
            return True
        at = self.producer.get(index)
        if at is None or self.kind(self.operators[at]) not in BETWEEN_TYPES:
            return False
        return self.constant(int(self.operators[at].inputs[0]))

    def moving(self, operator: int) -> list[int]:
        """The inputs of an operator that change from sample to sample."""
        inputs = self.operators[operator].inputs
        return [slot for slot, index in enumerate(inputs) if index >= 0 and not self.constant(int(index))]

    def shape(self, operator: int) -> tuple[int, ...]:
        """The shape of what an operator gives."""
        return tuple(self.graph.tensors[self.operators[operator].outputs[0]].shape)

    def grid(self, index: int) -> Grid | None:
        tensor = self.graph.tensors[index]
        scale, zero_point = _scale(tensor)
        return Grid.of(scale, zero_point, DTYPES[tensor.type]) if scale else None

    def entry_grid(self, index: int) -> Grid | None:
        """The grid of an input, also where the graph takes real numbers and quantizes them itself."""
        if (grid := self.grid(index)) is not None:
            return grid
        readers = [at for at in self.operators if index in at.inputs and self.kind(at) == "QUANTIZE"]
        return self.grid(int(readers[0].outputs[0])) if readers else None

    def weights(self, operator: Any) -> Weights | None:
        """The quantized weights of a convolution or dense layer."""
        axis = CHANNELS.get(self.kind(operator))
        if axis is None or not self.constant(int(operator.inputs[1])):
            return None
        tensor = self.graph.tensors[operator.inputs[1]]
        scale = None if tensor.quantization is None else tensor.quantization.scale
        if DTYPES[tensor.type] != "int8" or scale is None:
            return None
        stored = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8).view(np.int8)
        zero = np.asarray(tensor.quantization.zeroPoint if tensor.quantization.zeroPoint is not None else [0])
        # A depthwise kernel has one input channel for each of its outputs.
        inner = None if axis == 3 else -1
        return Weights.of(stored.reshape(tuple(tensor.shape)), np.asarray(scale), zero, axis, inner)

    def stored(self, index: int, values: Array, *, of: Any = None) -> Array:
        """Real numbers in the type of a tensor."""
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
        """The real numbers that the integers of a tensor stand for."""
        scale, zero_point = _scale(self.graph.tensors[index])
        if not scale:
            return values
        return ((values.astype(np.float64) - zero_point) * scale).astype(np.float32)


def _scale(tensor: Any) -> tuple[float, int]:
    """Scale and zero point of an activation; scale 0 where it is not quantized."""
    told = tensor.quantization
    if told is None or told.scale is None or len(told.scale) != 1:
        return 0.0, 0
    known = told.zeroPoint is not None and len(told.zeroPoint)
    return float(told.scale[0]), int(told.zeroPoint[0]) if known else 0


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen[name] = seen.get(name, 0) + 1
        found.append(name if count == 1 else f"{name}#{count}")
    return found


class EditedInterpreter:
    """A changed graph in LiteRT; tensors are given and told by their numbers."""

    def __init__(self, model: Any) -> None:
        import flatbuffers
        from ai_edge_litert.interpreter import Interpreter

        model.signatureDefs = None
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        self.model = model
        self.inputs: dict[int, dict[int, int]] = {}
        """Per operator, the tensors that were put in the place of its inputs."""
        self.errors: dict[str, int] = {}
        try:
            self.interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise StageError(f"LiteRT cannot load the graph cut at its layers: {error}") from error
        self.details = {d["index"]: d for d in self.interpreter.get_input_details()}
        self.outputs = [d["index"] for d in self.interpreter.get_output_details()]

    def run(self, feeds: Mapping[int, Array]) -> dict[int, Array]:
        """Inputs that are not given are zero."""
        for index, detail in self.details.items():
            value = feeds.get(index)
            if value is None:
                value = np.zeros(detail["shape"], detail["dtype"])
            self.interpreter.set_tensor(index, np.ascontiguousarray(value, detail["dtype"]))
        self.interpreter.invoke()
        return {index: self.interpreter.get_tensor(index) for index in self.outputs}


def whole(file: EditedFile) -> EditedInterpreter:
    """The file, giving the outputs of all operators."""
    model = copy.deepcopy(file.model)
    graph = model.subgraphs[0]
    graph.outputs = [int(at.outputs[0]) for at in graph.operators if not file.constant(int(at.outputs[0]))]
    return EditedInterpreter(model)


def cut(file: EditedFile, operators: Sequence[int]) -> EditedInterpreter:
    """The file with every one of these operators reading inputs of its own."""
    model = copy.deepcopy(file.model)
    graph = model.subgraphs[0]
    places: dict[int, dict[int, int]] = {}
    for number in operators:
        operator = graph.operators[number]
        operator.inputs = [int(index) for index in operator.inputs]
        for slot in file.moving(number):
            place = _clone(graph, operator.inputs[slot], f"given {number} {slot}")
            operator.inputs[slot] = place
            places.setdefault(number, {})[slot] = place
    kept = set(operators) | {i for i, at in enumerate(graph.operators) if file.constant(int(at.outputs[0]))}
    graph.operators = [at for i, at in enumerate(graph.operators) if i in kept]
    graph.inputs = [place for slots in places.values() for place in slots.values()]
    graph.outputs = [int(file.operators[number].outputs[0]) for number in operators]
    interpreter = EditedInterpreter(model)
    interpreter.inputs = places
    return interpreter


def with_errors(file: EditedFile, keys: Sequence[str]) -> EditedInterpreter:
    """The file with an addition behind every one of these tensors."""
    from ai_edge_litert import schema_py_generated as schema

    model = copy.deepcopy(file.model)
    graph = model.subgraphs[0]
    add = schema.OperatorCodeT()
    add.builtinCode = add.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    add.version = 1
    model.operatorCodes.append(add)
    errors: dict[str, int] = {}
    behind: dict[int, Any] = {}
    index_of = {key: index for index, key in enumerate(file.keys)}
    for key in keys:
        index = index_of[key]
        if DTYPES[graph.tensors[index].type] != "float32":
            continue
        raw, errors[key] = (_clone(graph, index, f"{what} {key}") for what in ("raw", "error"))
        if index in file.producer:
            at = graph.operators[file.producer[index]]
            at.outputs = [raw if out == index else int(out) for out in at.outputs]
            behind[file.producer[index]] = (raw, errors[key], index)
        else:
            # An input keeps its place; whoever reads it reads the sum.
            for at in graph.operators:
                at.inputs = [raw if each == index else int(each) for each in at.inputs]
            behind[-1 - len(behind)] = (index, errors[key], raw)
    ordered = []
    for number in [*sorted(n for n in behind if n < 0), *range(len(graph.operators))]:
        if number >= 0:
            ordered.append(graph.operators[number])
        if number in behind:
            first, second, out = behind[number]
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
    """Another tensor of the same kind, without content; returns its number."""
    tensor = copy.deepcopy(graph.tensors[index])
    tensor.name, tensor.buffer = name.encode(), 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
