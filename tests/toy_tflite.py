"""A small int8 TFLite file as a careless converter might write it, built without a converter."""

from typing import Any

import numpy as np

IDENTIFIER = b"TFL3"
NOTES = b"class names: cat, dog"


def toy(*, behind: bool = False) -> bytes:
    """Two dense layers, 8 to 8 to 8, with equal weights stored twice.

    Around them lies all that slimming takes out: equal scales, names, minimum and maximum, an unused buffer,
    an operator code that is there twice, a converter's metadata; and what must stay: a signature and the
    user's own metadata. ``behind`` puts the buffers behind the tables, as ai-edge-quantizer does.
    """
    model = _model()
    if not behind:
        return _packed(model)
    contents = []
    for buffer in model.buffers:
        if buffer.data is not None:
            contents.append((buffer, bytes(buffer.data)))
            buffer.data, buffer.offset, buffer.size = None, 1 << 20, 1 << 20
    # Numbers have a fixed size, so the tables keep theirs.
    tail = len(_packed(model)) + 15 & ~15
    stored = bytearray()
    for buffer, data in contents:
        buffer.offset, buffer.size = tail + len(stored), len(data)
        stored += data + bytes(-len(data) % 16)
    tables = _packed(model)
    return tables + bytes(tail - len(tables)) + bytes(stored)


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _model() -> Any:
    from ai_edge_litert import schema_py_generated as schema

    random = np.random.default_rng(3)
    weights = random.integers(-127, 128, (8, 8), np.int8)
    bias = random.integers(-500, 500, 8, np.int32)

    def buffer(data: bytes | None = None) -> Any:
        made = schema.BufferT()
        made.data = None if data is None else np.frombuffer(data, np.uint8)
        return made

    def tensor(name: str, shape: list[int], kind: int, number: int, scale: float) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, np.array(shape, np.int32), kind, number
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = np.array([scale], np.float32)
        made.quantization.zeroPoint = np.array([0], np.int64)
        made.quantization.min = np.array([-scale * 128], np.float32)
        made.quantization.max = np.array([scale * 127], np.float32)
        return made

    def dense(code: int, inputs: list[int], output: int) -> Any:
        made = schema.OperatorT()
        made.opcodeIndex = code
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        made.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        made.builtinOptions = schema.FullyConnectedOptionsT()
        return made

    def code() -> Any:
        made = schema.OperatorCodeT()
        made.deprecatedBuiltinCode = made.builtinCode = schema.BuiltinOperator.FULLY_CONNECTED
        return made

    def entry(name: str, number: int) -> Any:
        made = schema.MetadataT()
        made.name, made.buffer = name, number
        return made

    def mapped(name: str, number: int) -> Any:
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, number
        return made

    kinds = schema.TensorType
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = [
        tensor("serving_default_image:0", [1, 8], kinds.INT8, 1, 0.5),
        tensor("model/first/kernel;a/long/name/that/nobody/reads", [8, 8], kinds.INT8, 2, 0.02),
        tensor("model/first/bias", [8], kinds.INT32, 3, 0.01),
        tensor("model/first/Relu", [1, 8], kinds.INT8, 4, 0.5),
        tensor("model/second/kernel", [8, 8], kinds.INT8, 5, 0.02),
        tensor("model/second/bias", [8], kinds.INT32, 6, 0.01),
        tensor("StatefulPartitionedCall:0", [1, 8], kinds.INT8, 7, 0.5),
    ]
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([6], np.int32)
    graph.operators = [dense(0, [0, 1, 2], 3), dense(1, [3, 4, 5], 6)]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [mapped("image", 0)], [mapped("classes", 6)]
    model = schema.ModelT()
    model.version, model.description = 3, "MLIR Converted."
    model.operatorCodes = [code(), code()]
    model.subgraphs = [graph]
    held = (None, None, weights.tobytes(), bias.tobytes(), None, weights.tobytes(), bias.tobytes(), None)
    model.buffers = [*map(buffer, held), buffer(b"x" * 100), buffer(b"1.5.0" + bytes(11)), buffer(NOTES)]
    model.metadata = [entry("min_runtime_version", 9), entry("labels", 10)]
    model.signatureDefs = [signature]
    return model
