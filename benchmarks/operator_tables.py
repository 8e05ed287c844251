"""Asks the runtimes which operators they have, and writes what they say to `pipeline/edgeopt/limits/`.

    EDGEOPT_HOME=... edgeopt devices setup cortex-m            (and host-tflite-runtime, ethos-u55-128)
    python benchmarks/operator_tables.py tflite-micro | tflite-runtime-2.14 | ethos-u55-u65

A file with one operator and nothing else is made for every built-in operator (and version), and loaded by the
runtime in a process of its own: a resolver that lacks the operator says so in words before anything else can
go wrong. Vela writes a report of what it supports. The types of TFLM's kernels are kept from the table that
is there: they stand in its sources (tensorflow/lite/micro/kernels), and no call tells them.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeopt.device import load_device
from edgeopt.environments import environment_python
from edgeopt.formats.flatbuffer import Table, Vector
from edgeopt.formats.flatbuffer_writer import pack
from edgeopt.formats.tflite_schema import OPERATORS, SCHEMA

LIMITS = Path(__file__).resolve().parent.parent / "pipeline" / "edgeopt" / "limits"
NO_KERNELS = ("CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES")
LAST_VERSION = 20
MISSING = "Didn't find op"

TFLM = """
import sys
from tflite_micro.python.tflite_micro import _runtime
_runtime.InterpreterWrapper(open(sys.argv[1], "rb").read(), [], 1 << 20, 1,
                            _runtime.PythonInterpreterConfig.kAllocationRecording, 0)
"""
TFLITE = """
import sys
from tflite_runtime.interpreter import Interpreter
Interpreter(sys.argv[1], num_threads=1)
"""


def one_operator(number: int, version: int) -> bytes:
    """A file that adds nothing to the operator: one float in, one float out."""
    code = {"builtin_code": number, "version": version, "deprecated_builtin_code": min(number, 127)}
    tensor = Table("Tensor", {"shape": Vector("i32", (1).to_bytes(4, "little")), "buffer": 0})
    first, second = (Vector("i32", index.to_bytes(4, "little")) for index in (0, 1))
    graph = Table(
        "SubGraph",
        {
            "tensors": (tensor, tensor),
            "inputs": first,
            "outputs": second,
            "operators": (Table("Operator", {"opcode_index": 0, "inputs": first, "outputs": second}),),
        },
    )
    fields = {"version": 3, "operator_codes": (Table("OperatorCode", code),), "subgraphs": (graph,)}
    return pack(Table("Model", {**fields, "buffers": (Table("Buffer", {}),)}), SCHEMA, b"TFL3")


def has(python: Path, script: str, number: int, version: int) -> bool:
    """Whether the resolver finds the operator."""
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        Path(file.name).write_bytes(one_operator(number, version))
        command = [str(python), "-c", script, file.name]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return MISSING not in done.stderr


def builtin() -> list[tuple[int, str]]:
    return [(number, name) for number, name in enumerate(OPERATORS) if name not in NO_KERNELS]


def tflite_micro(table: dict[str, object]) -> None:
    python = environment_python("cortex-m")
    found = [name for number, name in builtin() if has(python, TFLM, number, 1)]
    known = table.get("operators")
    assert isinstance(known, dict)
    table["operators"] = {name: known.get(name, {}) for name in sorted(found)}


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
    table["operators"] = dict(sorted(operators.items()))


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
    for name, body in re.findall(r"### Ethos-U55 and Ethos-U65 TFLite (\w+) Constraints\n(.*?)(?=\n###? )", text, re.S):
        told = [kind for kind in types if kind != "int64" or name == "ARG_MAX"]
        if "32-bit feature-maps are not supported" in body:
            told.remove("int32")
        if match := re.search(r"IFM and OFM datatypes must match, and must be ([\w ]+)", body):
            told = [word.lower() for word in match[1].split(" or ")]
        exact[name] = told
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
        ask, device = TABLES[name]
        path = LIMITS / f"{name}.json"
        table = json.loads(path.read_text("utf-8"))
        table["runtime"] = versions(device)
        ask(table)
        operators = table.pop("operators")
        head = json.dumps(table, indent=1, ensure_ascii=False)[:-2]
        rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in operators.items())
        path.write_text(f'{head},\n "operators": {{\n{rows}\n }}\n}}\n', "utf-8")
        print(f"{path.name}: {len(operators)} operators")


if __name__ == "__main__":
    main()
