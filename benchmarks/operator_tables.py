"""Determine the operators of each runtime, and write `pipeline/edgeopt/devices/limits/`.

    EDGEOPT_HOME=... edgeopt devices setup cortex-m            (and host-tflite-runtime, ethos-u55-128)
    python benchmarks/operator_tables.py tflite-micro | tflite-runtime-2.14 | ethos-u55-u65

For each built-in operator (and version), the runtime loads a single-operator file in a separate process: a
resolver that lacks the operator reports this before any other error can occur. Vela writes a report of its
supported operators. The types of TFLM's kernels are determined by running small files; operators that cannot
be reduced to such a file get no list of types and are assumed to accept any.
"""

import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeopt.devices.device import load_device
from edgeopt.devices.environments import environment_python
from edgeopt.formats.tflite.files.graphs import DTYPES
from edgeopt.formats.tflite.files.schema import OPERATORS, SCHEMA
from edgeopt.formats.wire.flatbuffer import Table, Vector
from edgeopt.formats.wire.flatbuffer_writer import pack

LIMITS = Path(__file__).resolve().parent.parent / "pipeline" / "edgeopt" / "devices" / "limits"
NO_KERNELS = ("CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES")
LAST_VERSION = 20
MISSING = (
    "Didn't find op", "Op builtin_code out of range", "Failed to get registration from op code",
    "unresolved custom op", "Select TensorFlow op(s)",
)  # fmt: skip

CUSTOM_CODES = (
    "TFLite_Detection_PostProcess", "CIRCULAR_BUFFER", "ethos-u", "Mfcc", "AudioSpectrogram", "NumericVerify",
    "SignalDelay", "SignalEnergy", "SignalFftAutoScale", "SignalFilterBank", "SignalFilterBankLog",
    "SignalFilterBankSpectralSubtraction", "SignalFilterBankSquareRoot", "SignalFramer", "SignalIrfft",
    "SignalOverlapAdd", "SignalPCAN", "SignalRfft", "SignalStacker", "SignalWindow", "TFLM_DECODE",
    "FlexAddV2",
    "Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D", "RandomStandardNormal",
)  # fmt: skip
"""Custom operators known in TensorFlow's own runtimes, and a Flex operator that none of them may have."""

# Operators that need only inputs of shape [1, 1, 1, 1]: the number of inputs, and the options.
UNARY = "ABS CEIL COS ELU EXP FLOOR HARD_SWISH LOG LOGISTIC NEG RELU RELU6 ROUND RSQRT SIN SQRT SQUARE TANH"
POOL = ("Pool2DOptions", {"stride_w": 1, "stride_h": 1, "filter_width": 1, "filter_height": 1})
PLAIN: dict[str, tuple[int, tuple[str, dict[str, float]] | None]] = {
    **dict.fromkeys(UNARY.split(), (1, None)),
    "ADD": (2, ("AddOptions", {})),
    "SUB": (2, ("SubOptions", {})),
    "MUL": (2, ("MulOptions", {})),
    "DIV": (2, ("DivOptions", {})),
    "MAXIMUM": (2, ("MaximumMinimumOptions", {})),
    "MINIMUM": (2, ("MaximumMinimumOptions", {})),
    "SQUARED_DIFFERENCE": (2, ("SquaredDifferenceOptions", {})),
    "LEAKY_RELU": (1, ("LeakyReluOptions", {"alpha": 0.5})),
    "AVERAGE_POOL_2D": (1, POOL),
    "MAX_POOL_2D": (1, POOL),
    "L2_POOL_2D": (1, POOL),
    "SOFTMAX": (1, ("SoftmaxOptions", {"beta": 1.0})),
    "CONCATENATION": (2, ("ConcatenationOptions", {"axis": 3})),
    "DEQUANTIZE": (1, None),
}
WEIGHTED: dict[str, tuple[str, dict[str, float]]] = {
    "CONV_2D": ("Conv2DOptions", {"stride_w": 1, "stride_h": 1}),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1}),
    "FULLY_CONNECTED": ("FullyConnectedOptions", {}),
}
TYPES = ("float32", "int32", "uint8", "int64", "bool", "int16", "int8", "int4", "float16")

TFLM = """
import sys
from tflite_micro.python.tflite_micro import _runtime
_runtime.InterpreterWrapper(open(sys.argv[1], "rb").read(), [], 1 << 20, 1,
                            _runtime.PythonInterpreterConfig.kAllocationRecording, 0)
"""
TFLM_RUN = """
import sys, numpy
from tflite_micro.python.tflite_micro import runtime
model = runtime.Interpreter.from_file(sys.argv[1], arena_size=1 << 20)
for index in range(int(sys.argv[2])):
    detail = model.get_input_details(index)
    model.set_input(numpy.ones(detail["shape"], detail["dtype"]), index)
model.invoke()
model.get_output(0)
print("it ran")
"""
TFLITE = """
import sys
from tflite_runtime.interpreter import Interpreter
Interpreter(sys.argv[1], num_threads=1).allocate_tensors()
"""


def model(code: dict[str, object], tensors: list[Table], inputs: int, operator: dict[str, object]) -> bytes:
    """A file with one operator. The first ``inputs`` tensors are graph inputs, the last is the output."""
    everything = _numbers(*range(len(tensors) - 1))
    operator = {"opcode_index": 0, "inputs": everything, "outputs": _numbers(len(tensors) - 1), **operator}
    graph = {
        "tensors": tuple(tensors),
        "inputs": _numbers(*range(inputs)),
        "outputs": _numbers(len(tensors) - 1),
        "operators": (Table("Operator", operator),),
    }
    fields = {
        "version": 3,
        "operator_codes": (Table("OperatorCode", code),),
        "subgraphs": (Table("SubGraph", graph),),
        "buffers": (Table("Buffer", {}), Table("Buffer", {"data": Vector("u8", bytes([1] * 16))})),
    }
    return pack(Table("Model", fields), SCHEMA, b"TFL3")


def _numbers(*values: int) -> Vector:
    return Vector("i32", struct.pack(f"<{len(values)}i", *values))


def tensor(dtype: str, shape: tuple[int, ...], constant: bool = False) -> Table:
    """A tensor; a quantized one has scale 1/256 and zero point 0, which every operator accepts."""
    code = next(number for number, name in DTYPES.items() if name == dtype)
    fields = {"shape": _numbers(*shape), "type": code, "buffer": int(constant)}
    if dtype in ("int8", "int16", "int4", "uint8"):
        scale, zero = struct.pack("<f", 1 / 256), struct.pack("<q", 0)
        quantization = {"scale": Vector("f32", scale), "zero_point": Vector("i64", zero)}
        fields["quantization"] = Table("QuantizationParameters", quantization)
    return Table("Tensor", fields)


def code_of(number: int, version: int = 1, custom: str = "") -> dict[str, object]:
    code: dict[str, object] = {
        "builtin_code": number, "version": version, "deprecated_builtin_code": min(number, 127)
    }  # fmt: skip
    if custom:
        code["custom_code"] = Vector("str", custom.encode())
    return code


def options_of(options: tuple[str, dict[str, float]] | None) -> dict[str, object]:
    if options is None:
        return {}
    name, fields = options
    number = SCHEMA.unions["BuiltinOptions"].index(name) + 1
    return {"builtin_options_type": number, "builtin_options": Table(name, fields)}


def run(python: Path, script: str, content: bytes, *arguments: str) -> "subprocess.CompletedProcess[str]":
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        Path(file.name).write_bytes(content)
        command = [str(python), "-c", script, file.name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def has(python: Path, script: str, number: int, version: int = 1, custom: str = "") -> bool:
    """Whether the resolver has the operator."""
    tensors = [tensor("float32", (1,)), tensor("float32", (1,))]
    done = run(python, script, model(code_of(number, version, custom), tensors, 1, {}))
    return not any(words in done.stderr for words in MISSING)


def types_of(python: Path, name: str) -> list[str]:
    """Types of the first input for which a single-operator file runs."""
    inputs, options = PLAIN[name]
    found = []
    for dtype in TYPES:
        tensors = [tensor(dtype, (1, 1, 1, 1)) for _ in range(inputs)]
        tensors.append(tensor("float32" if name == "DEQUANTIZE" else dtype, (1, 1, 1, 1)))
        content = model(code_of(OPERATORS.index(name)), tensors, inputs, options_of(options))
        done = run(python, TFLM_RUN, content, str(inputs))
        # Some operators require a particular scale or zero point, and check it after the type.
        if dtype != "int4" and ("it ran" in done.stdout or re.search("zero_point|scale", done.stderr)):
            found.append(dtype)
    return found


def pairs_of(python: Path, name: str) -> list[str]:
    """Pairs of input and weight types for which a single-operator file runs."""
    found = []
    shape = (1, 1) if name == "FULLY_CONNECTED" else (1, 1, 1, 1)
    for dtype, weights in itertools.product(("float32", "int8", "int16", "uint8"), TYPES):
        bias = {"float32": "float32", "int16": "int64"}.get(dtype, "int32")
        tensors = [
            tensor(dtype, shape),
            tensor(weights, shape, True),
            tensor(bias, (1,), True),
            tensor(dtype, shape),
        ]
        content = model(code_of(OPERATORS.index(name)), tensors, 1, options_of(WEIGHTED[name]))
        if "it ran" in run(python, TFLM_RUN, content, "1").stdout:
            found.append(f"{dtype} × {weights}")
    return found


def builtin() -> list[tuple[int, str]]:
    return [(number, name) for number, name in enumerate(OPERATORS) if name not in NO_KERNELS]


def tflite_micro(table: dict[str, object]) -> None:
    python = environment_python("cortex-m")
    found = [name for number, name in builtin() if has(python, TFLM, number, 1)]
    operators: dict[str, dict[str, list[str]]] = {name: {} for name in sorted(found)}
    for name in operators:
        if name in PLAIN:
            operators[name]["types"] = types_of(python, name)
        elif name in WEIGHTED:
            operators[name]["pairs"] = pairs_of(python, name)
    table["custom"] = custom(python, TFLM)
    table["operators"] = operators


def tflite_runtime(table: dict[str, object]) -> None:
    python = environment_python("host-tflite-runtime")
    operators: dict[str, dict[str, int]] = {}
    for number, name in builtin():
        version = 1
        if not has(python, TFLITE, number, version):
            continue
        while version < LAST_VERSION and has(python, TFLITE, number, version + 1):
            version += 1
        operators[name] = {"version": version}
    table["custom"] = custom(python, TFLITE)
    table["operators"] = dict(sorted(operators.items()))


def custom(python: Path, script: str) -> list[str]:
    number = OPERATORS.index("CUSTOM")
    return [name for name in CUSTOM_CODES if has(python, script, number, custom=name)]


def ethos_u(table: dict[str, object]) -> None:
    python = environment_python("ethos-u55-128")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), "-m", "ethosu.vela", "--supported-ops-report"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        text = (Path(folder) / "SUPPORTED_OPS.md").read_text("utf-8")
    part = text.split("## Ethos-U55 and Ethos-U65 TFLite Summary Table")[1].split("\n## ")[0]
    names = [name for name in re.findall(r"^\| (\w+) \|", part, re.MULTILINE) if name in OPERATORS]
    generic = re.search(r"Feature-map dataTypes must be one of \{(.*)\}", text)
    assert generic is not None
    types = [name.strip(' "').lower() for name in generic[1].split(",")]
    exact = {}
    for name, body in re.findall(
        r"### Ethos-U55 and Ethos-U65 TFLite (\w+) Constraints\n(.*?)(?=\n###? )", text, re.S
    ):
        supported = [kind for kind in types if kind != "int64" or name == "ARG_MAX"]
        if "32-bit feature-maps are not supported" in body:
            supported.remove("int32")
        if match := re.search(r"IFM and OFM datatypes must match, and must be ([\w ]+)", body):
            supported = [word.lower() for word in match[1].split(" or ")]
        exact[name] = supported
    usual = [kind for kind in types if kind != "int64"]
    table["operators"] = {name: {"types": exact.get(name, usual)} for name in sorted(names)}
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
        assert "Weight tensors must be 8-bit precision" in text
        table["operators"][name]["weights"] = ["int8", "uint8"]


def versions(device: str) -> str:
    return load_device(device).setup.python[0].replace("==", " ")


TABLES = {
    "tflite-micro": (tflite_micro, "cortex-m"),
    "tflite-runtime-2.14": (tflite_runtime, "host-tflite-runtime"),
    "ethos-u55-u65": (ethos_u, "ethos-u55-128"),
}


def main() -> None:
    for name in sys.argv[1:]:
        fill, device = TABLES[name]
        path = LIMITS / f"{name}.json"
        table = json.loads(path.read_text("utf-8"))
        table["runtime"] = versions(device)
        fill(table)
        operators = table.pop("operators")
        head = json.dumps(table, indent=1, ensure_ascii=False)[:-2]
        rows = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in operators.items()
        )
        path.write_text(f'{head},\n "operators": {{\n{rows}\n }}\n}}\n', "utf-8")
        print(f"{path.name}: {len(operators)} operators")


if __name__ == "__main__":
    main()
