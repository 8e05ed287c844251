"""Arm's Vela (``ethos-u-vela``): compiles a model for an Ethos-U NPU and estimates what it will cost there.

Nothing is executed. Figures come from the summary and the per-layer table that Vela writes.
"""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import AgentError
from edgeopt_agent.protocol import Measured
from edgeopt_agent.session import ModelSession, Spec

KIB = 1024
FLAGS = {
    "accelerator": "--accelerator-config",
    "system_config": "--system-config",
    "memory_mode": "--memory-mode",
    "optimise": "--optimise",
    "arena_cache_size": "--arena-cache-size",
}
OPERATORS = re.compile(r"^(CPU|NPU) operators = (\d+)", re.MULTILINE)
REASON = re.compile(r"operator: (\w+), ofm.*\nReason: ([^(\n]*)")
COLUMNS = (
    "Original Operator",
    "NNG Operator",
    "Target",
    "Op Cycles",
    "SRAM AC",
    "DRAM AC",
    "MAC Count",
    "Name",
)
WORDS = ("operator", "npu_operator", "target", "cycles", "sram_cycles", "dram_cycles", "macs", "name")


class Session(ModelSession):
    """A ``.tflite`` file as Vela compiles it. Options are Vela's own, ``accelerator`` is required."""

    requires = ("ethos-u-vela",)
    known_options = tuple(FLAGS)
    executes = False

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        if "accelerator" not in options:
            raise AgentError("runtime", "vela needs the option 'accelerator', such as ethos-u55-128")
        self.graph = _graph(path)
        self.inputs = [self._spec(self.graph.Inputs(index)) for index in range(self.graph.InputsLength())]
        self.outputs = [self._spec(self.graph.Outputs(index)) for index in range(self.graph.OutputsLength())]
        self.folder = path.parent / "vela"
        command = [sys.executable, "-m", "ethosu.vela", "--verbose-performance"]
        command += ["--output-dir", str(self.folder)]
        for name, value in sorted(options.items()):
            command += [FLAGS[name], str(value)]
        done = subprocess.run(
            [*command, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=str(path.parent),
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise AgentError("model", f"Vela cannot compile it: {_last_line(done.stdout)}")
        self.stem = path.stem
        self.summary = self._summary()
        self.rows = self._rows()
        self.share = self._share(done.stdout)

    def measurements(self) -> dict[str, Measured]:
        """Cycles and memory by Vela's model of the NPU; bytes are those of its memory areas."""
        figures = self.summary
        flash = _number(figures, "on_chip_flash_memory_used") + _number(figures, "off_chip_flash_memory_used")
        found = {
            "npu_cycles": (_number(figures, "cycles_total"), ""),
            "estimated_latency_ms": (_number(figures, "inference_time") * 1e3, "ms"),
            "sram_bytes": (_number(figures, "sram_memory_used") * KIB, "bytes"),
            "flash_bytes": (flash * KIB, "bytes"),
            "npu_share": (self.share, ""),
        }
        dram = _number(figures, "dram_memory_used")
        if dram:
            found["dram_bytes"] = (dram * KIB, "bytes")
        return {name: {"value": value, "unit": unit} for name, (value, unit) in found.items()}

    def compiled(self) -> Path | None:
        return self.folder / f"{self.stem}_vela.tflite"

    def details(self) -> list[dict[str, Any]]:
        """One row per operator that Vela made, in the order of execution."""
        return self.rows

    def notes(self) -> list[str]:
        """What must stand beside the figures."""
        figures = self.summary
        found = [
            f"estimate by ethos-u-vela {self.version()}, nothing was executed: {figures['system_config']}, "
            f"{figures['memory_mode']}, {_number(figures, 'core_clock') / 1e6:g} MHz"
        ]
        left = [row["operator"] for row in self.rows if row["target"] == "CPU"]
        if left:
            kinds = ", ".join(dict.fromkeys(left))
            found.append(f"{len(left)} operators are left to the processor beside the NPU: {kinds}")
        return found

    def _spec(self, index: int) -> Spec:
        from ethosu.vela.tflite.TensorType import TensorType

        names = {value: name.lower() for name, value in vars(TensorType).items() if isinstance(value, int)}
        tensor = self.graph.Tensors(index)
        quantization = tensor.Quantization()
        scaled = quantization is not None and quantization.ScaleLength() == 1
        return Spec(
            (tensor.Name() or b"").decode("utf-8", "replace"),
            tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength())),
            names.get(tensor.Type(), "unknown"),
            float(quantization.Scale(0)) if scaled else None,
            int(quantization.ZeroPoint(0)) if scaled and quantization.ZeroPointLength() else None,
        )

    def _summary(self) -> dict[str, str]:
        files = sorted(self.folder.glob(f"{self.stem}_summary_*.csv"))
        if not files:
            raise AgentError("model", "Vela wrote no summary: this is not a version that is known here")
        with files[0].open(newline="", encoding="utf-8") as file:
            return dict(next(csv.DictReader(file)))

    def _rows(self) -> list[dict[str, Any]]:
        """The per-layer table. Names come last and are not quoted, whatever they hold."""
        path = self.folder / f"{self.stem}_per-layer.csv"
        if not path.exists():
            return []
        header, *lines = path.read_text("utf-8", "replace").splitlines()
        titles = header.split(",")
        rows = []
        for line in lines:
            values = dict(zip(titles, line.split(",", len(titles) - 1)))
            row: dict[str, Any] = {}
            for title, word in zip(COLUMNS, WORDS):
                value = values.get(title, "")
                row[word] = int(value) if value.isdigit() and word != "name" else value
            rows.append(row)
        return rows

    def _share(self, text: str) -> float:
        """Share of the model's own operators that the NPU carries out.

        Vela's count is of what it makes of them: a softmax alone becomes 26, which hides what is left out.

        Raises:
            AgentError: nothing runs on the NPU. Vela calls that a success.
        """
        counts = {kind: int(count) for kind, count in OPERATORS.findall(text)}
        total = int(self.graph.OperatorsLength())
        left = counts.get("CPU", 0)
        if not counts.get("NPU", 0) or not _number(self.summary, "cycles_total"):
            reasons = dict.fromkeys(f"{kind}: {reason.strip()}" for kind, reason in REASON.findall(text))
            why = next(iter(reasons), "no operator is one that it supports")
            floats = "Float" in why
            raise AgentError(
                "model",
                f"none of its {total} operators can run on the NPU, all would run on the processor beside it "
                f"({'float operators' if floats else 'operators it does not have'}; {why}): "
                "give an int8 file with int8 activations (quantize: int8)",
            )
        return max(0.0, 1 - left / total) if total else 0.0


def _graph(path: Path) -> Any:
    """The main graph of a ``.tflite`` file, by the reader that comes with Vela."""
    from ethosu.vela.tflite.Model import Model

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise AgentError("model", "this is not a TFLite model: the identifier TFL3 is missing")
    return Model.GetRootAs(content, 0).Subgraphs(0)


def _number(figures: dict[str, str], name: str) -> float:
    value = float(figures.get(name) or 0)
    return value if math.isfinite(value) else 0.0


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[-1]
