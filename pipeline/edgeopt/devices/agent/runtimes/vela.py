"""Arm's Vela (``ethos-u-vela``): compiles a model for an Ethos-U NPU and estimates its performance there.

Nothing is executed. The estimates are read from Vela's summary and per-layer CSV files.
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
from edgeopt_agent.keeper import die_with_parent
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
KEYS = ("operator", "npu_operator", "target", "cycles", "sram_cycles", "dram_cycles", "macs", "name")


class Session(ModelSession):
    """A ``.tflite`` file, compiled by Vela. Options are those of Vela; ``accelerator`` is required."""

    requires = ("ethos-u-vela",)
    known_options = tuple(FLAGS)
    executes = False

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        if "accelerator" not in options:
            raise AgentError("runtime", "vela requires the option 'accelerator', such as ethos-u55-128")
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
            preexec_fn=die_with_parent(),
        )
        if done.returncode != 0:
            raise AgentError("model", f"Vela cannot compile the model: {_last_line(done.stdout)}")
        self.stem = path.stem
        self.summary = self._summary()
        self.rows = self._rows()
        self.npu_share = self._npu_share(done.stdout)

    def measurements(self) -> dict[str, Measured]:
        """Cycles, latency and memory usage per memory area, estimated by Vela's performance model."""
        summary = self.summary
        flash = _number(summary, "on_chip_flash_memory_used") + _number(summary, "off_chip_flash_memory_used")
        values = {
            "npu_cycles": (_number(summary, "cycles_total"), ""),
            "estimated_latency_ms": (_number(summary, "inference_time") * 1e3, "ms"),
            "sram_bytes": (_number(summary, "sram_memory_used") * KIB, "bytes"),
            "flash_bytes": (flash * KIB, "bytes"),
            "npu_share": (self.npu_share, ""),
        }
        dram = _number(summary, "dram_memory_used")
        if dram:
            values["dram_bytes"] = (dram * KIB, "bytes")
        return {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}

    def compiled(self) -> Path | None:
        return self.folder / f"{self.stem}_vela.tflite"

    def details(self) -> list[dict[str, Any]]:
        """One row per operator of the compiled model, in execution order."""
        return self.rows

    def notes(self) -> list[str]:
        """Caveats of the measurements."""
        summary = self.summary
        notes = [
            f"estimate by ethos-u-vela {self.version()}, nothing was executed: {summary['system_config']}, "
            f"{summary['memory_mode']}, {_number(summary, 'core_clock') / 1e6:g} MHz"
        ]
        on_cpu = [row["operator"] for row in self.rows if row["target"] == "CPU"]
        if on_cpu:
            kinds = ", ".join(dict.fromkeys(on_cpu))
            notes.append(f"{len(on_cpu)} operators fall back to the CPU: {kinds}")
        return notes

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
            raise AgentError("model", "Vela wrote no summary: this version of ethos-u-vela is not supported")
        with files[0].open(newline="", encoding="utf-8") as file:
            return dict(next(csv.DictReader(file)))

    def _rows(self) -> list[dict[str, Any]]:
        """The per-layer table. The last column, the name, is not quoted and may contain commas."""
        path = self.folder / f"{self.stem}_per-layer.csv"
        if not path.exists():
            return []
        header, *lines = path.read_text("utf-8", "replace").splitlines()
        titles = header.split(",")
        rows = []
        for line in lines:
            values = dict(zip(titles, line.split(",", len(titles) - 1)))
            row: dict[str, Any] = {}
            for title, key in zip(COLUMNS, KEYS):
                value = values.get(title, "")
                row[key] = int(value) if value.isdigit() and key != "name" else value
            rows.append(row)
        return rows

    def _npu_share(self, text: str) -> float:
        """Fraction of the model's operators that run on the NPU.

        Vela counts compiled operators instead: a softmax alone becomes 26 of them, which hides the fallbacks.

        Raises:
            AgentError: kind ``model``: no operator runs on the NPU, which Vela does not treat as an error.
        """
        counts = {kind: int(count) for kind, count in OPERATORS.findall(text)}
        total = int(self.graph.OperatorsLength())
        on_cpu = counts.get("CPU", 0)
        if not counts.get("NPU", 0) or not _number(self.summary, "cycles_total"):
            reasons = dict.fromkeys(f"{kind}: {reason.strip()}" for kind, reason in REASON.findall(text))
            why = next(iter(reasons), "it supports none of them")
            floats = "Float" in why
            raise AgentError(
                "model",
                f"none of its {total} operators can run on the NPU, all would fall back to the CPU "
                f"({'float operators' if floats else 'unsupported operators'}; {why}): "
                "use a file with int8 weights and activations (quantize: int8)",
            )
        return max(0.0, 1 - on_cpu / total) if total else 0.0


def _graph(path: Path) -> Any:
    """The main graph of a ``.tflite`` file, parsed with Vela's FlatBuffers classes."""
    from ethosu.vela.tflite.Model import Model

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise AgentError("model", "not a TFLite model: the file identifier TFL3 is missing")
    return Model.GetRootAs(content, 0).Subgraphs(0)


def _number(summary: dict[str, str], name: str) -> float:
    value = float(summary.get(name) or 0)
    return value if math.isfinite(value) else 0.0


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[-1]
