"""Bytes saved by slimming real files, and a bitwise comparison of the outputs.

    python benchmarks/slimming.py [--inputs 1000] [--json] [FILE...]

Without files, the four published files of MLPerf Tiny under EDGEOPT_DATA are used. The original and the
slimmed file run on the same random inputs: in LiteRT, and in tflite-runtime 2.14 if it has been set up
(``edgeopt devices setup host-tflite-runtime``, or ``--python`` with the interpreter of an environment that
contains it). Exit code 1: an output differs, or a file exceeds its goal.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeopt.devices.environments import environment_python
from edgeopt.errors import EdgeoptError
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.files.slimming import slimmed

GOALS = {
    "ad_reference_int8.tflite": 274_000,
    "kws_reference_int8.tflite": 33_300,
    "resnet8_reference_int8.tflite": 86_700,
    "vww_reference_int8.tflite": 254_000,
}
"""Maximum size of the published files after slimming, in bytes."""

# Runs in the environment of each runtime: sha256 of all outputs of one file on random inputs.
RUN = """
import hashlib, sys
import numpy as np
if sys.argv[1] == "litert":
    from ai_edge_litert.interpreter import Interpreter
else:
    from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[2], num_threads=1)
interpreter.allocate_tensors()
random, digest = np.random.default_rng(1), hashlib.sha256()
for _ in range(int(sys.argv[3])):
    for detail in interpreter.get_input_details():
        shape, dtype = detail["shape"], np.dtype(detail["dtype"])
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            value = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        else:
            value = random.standard_normal(shape).astype(dtype)
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    for detail in interpreter.get_output_details():
        digest.update(interpreter.get_tensor(detail["index"]).tobytes())
print(digest.hexdigest())
"""


def outputs(python: Path, runtime: str, file: Path, inputs: int) -> str:
    """Digest of the outputs of ``file`` on random inputs, or the reason of a failure."""
    command = [str(python), "-c", RUN, runtime, str(file), str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"failed: {lines[-1] if lines else done.returncode}"
    return done.stdout.strip()


def runtimes(python: Path | None) -> dict[str, Path]:
    """The available runtimes, each with its Python interpreter."""
    found = {"litert": Path(sys.executable)}
    try:
        found["tflite-runtime"] = python or environment_python("host-tflite-runtime")
    except EdgeoptError as error:
        print(f"without tflite-runtime: {error}", file=sys.stderr)
    return found


def measure(file: Path, inputs: int, found: dict[str, Path]) -> dict[str, object]:
    """One row: bytes before and after, seconds, and whether the outputs are the same."""
    start = time.perf_counter()
    result = slimmed(load(file))
    seconds = time.perf_counter() - start
    row: dict[str, object] = {
        "file": file.name,
        "before": file.stat().st_size,
        "after": len(result),
        "goal": GOALS.get(file.name),
        "seconds": round(seconds, 3),
    }
    with tempfile.TemporaryDirectory() as folder:
        slim = Path(folder) / file.name
        slim.write_bytes(result)
        for runtime, python in found.items():
            before, after = (outputs(python, runtime, path, inputs) for path in (file, slim))
            broken = next((text for text in (before, after) if text.startswith("failed")), "")
            row[runtime] = broken or ("identical" if before == after else "DIFFERENT")
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--python", type=Path, help="interpreter of an environment with tflite-runtime")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    files = given.files
    if not files:
        root = os.environ.get("EDGEOPT_DATA")
        if not root:
            parser.error("name files, or set EDGEOPT_DATA")
        files = [Path(root) / "mlperf-tiny" / name for name in GOALS]
    found = runtimes(given.python)
    rows = [measure(file, given.inputs, found) for file in files]
    if given.json:
        print(json.dumps({"machine": platform.platform(), "inputs": given.inputs, "files": rows}, indent=2))
    else:
        print(f"{time.strftime('%Y-%m-%d')}, {platform.platform()}, {given.inputs} random inputs each\n")
        titles = ["file", "before", "after", "goal", "seconds", *found]
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
        for row in rows:
            cells = (row[title] for title in titles)
            print("| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c or "") for c in cells) + " |")
    good = all(
        int(str(row["after"])) <= int(str(row["goal"] or row["before"]))
        and all(row[runtime] == "identical" for runtime in found)
        for row in rows
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
