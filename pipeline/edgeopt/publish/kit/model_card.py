"""The model card of a bundle, in the form that the Hugging Face Hub reads.

Source of the form: https://huggingface.co/docs/hub/model-cards and its ``model-index``. It says what was
measured and nothing else: no licence, no training data, no intended use that nobody told.
"""

import re
from collections.abc import Collection
from typing import Any

import yaml

from edgeopt.config.units import show_bytes
from edgeopt.publish.contract import Contract
from edgeopt.publish.kit.c_names import one_line
from edgeopt.publish.kit.contents import contents, golden
from edgeopt.results import ALWAYS, SPARSE, UNITS, Measurement, Report

FILE = "MODEL_CARD.md"
LIBRARIES = {"tflite": "litert", "onnx": "onnx", "torchscript": "pytorch", "executorch": "executorch"}
HUB_NAMES = {"top1": "accuracy", "top5": "top_5_accuracy", "roc_auc": "roc_auc", "mean_squared_error": "mse"}
"""Metrics that the Hub has a name of its own for."""
MEANINGS = {
    "size_bytes": "the file",
    "gzip_bytes": "the file, compressed",
    "arena_bytes": "memory for tensors and bookkeeping",
    "arena_head_bytes": "tensors and scratch, which share memory by turns",
    "arena_tail_bytes": "what lives as long as the model",
    "npu_share": "share of the operators that the NPU carries out",
    "latency_ratio": "time of one run, as a share of the float artifact's",
    "macs": "multiply-accumulates of one run",
    "parameters": "numbers in the weights",
    "sparsity": "share of the weights that are zero",
    "fidelity_snr_db": "signal to noise of the outputs against the source model",
    "agreement": "share of samples with the same largest output as the source model",
    "max_abs_error": "largest difference of an output from the source model's",
}
"""In words, what a name alone does not tell."""
ELSEWHERE = re.compile(r"device \S+ has no runtime for |\S+ (is built, but not measured|will fail) on \S+: ")
"""Notes of a run about what was not measured: never about the artifact of a bundle."""


def model_card(contract: Contract, report: Report, there: Collection[str] = ()) -> str:
    """The text of ``MODEL_CARD.md``; ``there``: what else lies in the folder."""
    parts = [
        _front_matter(contract, report),
        f"# {text(contract.name)} {text(contract.version)}",
        f"`{text(contract.file.name)}` ({contract.file.size_bytes:,} bytes), "
        f"variant **{text(contract.variant)}** in format {contract.format}, "
        f"for the device **{text(contract.device)}**.",
        contents(contract, there),
        _inputs(contract),
        _measured(contract),
        _made(contract, report),
        _limits(contract, report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def quality(contract: Contract) -> dict[str, Measurement]:
    """The metrics that judge the answers themselves."""
    helpers = ("_drop", "_error", "_steps", "_flips")
    return {
        name: value
        for name, value in contract.measured.items()
        if name not in UNITS and name not in ALWAYS and not name.endswith(helpers)
    }


def _front_matter(contract: Contract, report: Report) -> str:
    metrics = quality(contract)
    about: dict[str, Any] = {
        "library_name": LIBRARIES.get(contract.format, contract.format),
        "tags": ["edgeopt", contract.format, one_line(contract.variant), one_line(contract.device)],
    }
    if metrics:
        digest = report.run.evaluation_digest
        about["metrics"] = [HUB_NAMES.get(name, name) for name in metrics]
        results = {
            # The recipe does not tell what kind of task it is.
            "task": {"type": "other"},
            "dataset": {
                "name": f"evaluation data of the recipe {one_line(report.recipe)}",
                "type": "custom",
                **({"revision": digest} if digest else {}),
            },
            "metrics": [
                {
                    "type": HUB_NAMES.get(name, name),
                    "name": f"{name} on {one_line(contract.device)}",
                    "value": value.value,
                }
                for name, value in metrics.items()
            ],
        }
        about["model-index"] = [{"name": one_line(contract.name), "results": [results]}]
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---"


def _inputs(contract: Contract) -> str:
    lines = [
        "## Intended input",
        "",
        "| tensor | shape | type | layout | scale | zero point |",
        "|---|---|---|---|---|---|",
    ]
    for side, specs in (("input", contract.inputs), ("output", contract.outputs)):
        for spec in specs:
            shape = " × ".join("free" if size is None else str(size) for size in spec.shape)
            lines.append(
                f"| {side} {text(spec.name)} | {shape} | {spec.dtype} | {spec.layout or '–'} | "
                f"{'–' if spec.scale is None else f'{spec.scale:.9g}'} | "
                f"{'–' if spec.zero_point is None else spec.zero_point} |"
            )
    how = contract.preprocessing
    steps = [f"× {how.scale:.9g}"] if how.scale != 1.0 else []
    steps += [f"− {_numbers(how.mean)}"] if how.mean else []
    steps += [f"÷ {_numbers(how.std)}"] if how.std else []
    raw = ", ".join(f"{' × '.join(map(str, r.shape)) or 'one value'} {r.dtype}" for r in contract.raw)
    lines += ["", f"Raw samples: {raw or 'not known'}{f', {how.layout}' if how.layout else ''}."]
    lines.append(f"Preprocessing: {', then '.join(steps) or 'none: values are taken as they are'}.")
    if contract.labels:
        named = ", ".join(text(label) for label in contract.labels[:20])
        more = f" and {len(contract.labels) - 20} more, see labels.txt" if len(contract.labels) > 20 else ""
        lines.append(f"Classes, in the order of the outputs: {named}{more}.")
    return "\n".join(lines)


def _measured(contract: Contract) -> str:
    estimated = any(name.startswith("estimated_") for name in contract.measured)
    heading = "Estimated for" if estimated else "Measured on"
    lines = [
        f"## {heading} {text(contract.device)}{' (emulated)' if contract.emulated else ''}",
        "",
    ]
    if estimated:
        lines += [
            "Cycles, time and memory: what the device's compiler says of this file. Nothing was run on it.",
            "",
        ]
    if contract.emulated:
        lines += [
            "Emulated: the runtime's own kernels, carried out on another processor. Accuracy and memory "
            "count; no time was measured.",
            "",
        ]
    lines += [
        f"Runtime: {text(contract.runtime) or 'not known'}.",
        "",
    ]
    lines += ["| measurement | value | 95 % interval | samples or runs |", "|---|---:|---|---:|"]
    for name, value in contract.measured.items():
        if not _readable(name, value):
            continue
        interval = "–" if value.ci95 is None else " … ".join(_value(value, end) for end in value.ci95)
        count = "–" if value.n is None else f"{value.n:,}"
        lines.append(f"| {_explained(name)} | {_value(value, value.value)} | {interval} | {count} |")
    if contract.arena is not None:
        arena = contract.arena
        lines += [
            "",
            f"Arena: {arena.measured_bytes:,} bytes ({text(arena.source)}); "
            f"reserve {arena.recommended_bytes:,}.",
        ]
    if contract.golden is not None:
        lines += ["", text(golden(contract))]
    if contract.gates:
        lines += ["", "Gates of the recipe:", ""]
        lines += [
            f"- {text(verdict.gate)}: {verdict.status}"
            + (f", {text(verdict.reason)}" if verdict.reason else "")
            for verdict in contract.gates
        ]
    return "\n".join(lines)


def _made(contract: Contract, report: Report) -> str:
    source = report.source
    lines = ["## How it was made", ""]
    if source is not None:
        lines.append(
            f"From the {source.format} model `{text(source.path)}` (sha256 `{source.digest}`), "
            "by these stages:"
        )
    lines += ["", *(f"{number}. {stage}" for number, stage in enumerate(contract.chain, 1))]
    lines += [
        "",
        f"edgeopt {report.run.edgeopt}, recipe {text(report.recipe)} (digest `{report.run.recipe_digest}`).",
    ]
    return "\n".join(lines)


def _limits(contract: Contract, report: Report) -> str:
    lines = ["## Limits of the evaluation", ""]
    metrics = quality(contract)
    if not metrics:
        lines.append(f"- No accuracy was measured on {text(contract.device)}.")
    for name in metrics:
        smallest = contract.measured.get(f"{name}_detectable_drop")
        if smallest is not None:
            lines.append(
                f"- A drop of {name} smaller than {smallest.value:.2%} would not have been shown by "
                f"{smallest.n:,} samples (probability 80 %, confidence 95 %)."
                if smallest.n is not None
                else f"- A drop of {name} smaller than {smallest.value:.2%} would not have been shown."
            )
    lines.append(
        f"- Evaluation data: {report.run.samples:,} samples, digest `{report.run.evaluation_digest or '–'}`."
    )
    lines += [f"- {text(note)}" for note in (*contract.notes, *report.run.notes) if not ELSEWHERE.match(note)]
    lines.append("- Nothing is known of data that differ from the evaluation data.")
    return "\n".join(lines)


def _readable(name: str, value: Measurement) -> bool:
    """Whether a number tells a reader of one bundle anything: others compare devices, or stand in words."""
    if name.startswith("parity_") or name.endswith("_detectable_drop"):
        return False
    return name != "sparsity" or value.value > SPARSE


def _explained(name: str) -> str:
    meaning = MEANINGS.get(name, "")
    if name.endswith("_worst_class_drop"):
        meaning = "lost in the class that lost most"
    elif name.endswith("_drop"):
        meaning = "lost against the source model; negative: gained"
    return f"{text(name)}: {meaning}" if meaning else text(name)


def text(value: str) -> str:
    """Plain text inside Markdown."""
    flat = one_line(value)
    for sign, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'"), ("*", "\\*")):
        flat = flat.replace(sign, escaped)
    return flat


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.9g}" for value in values) + (" per channel" if len(values) > 1 else "")


def _value(measurement: Measurement, value: float) -> str:
    if measurement.unit == "bytes":
        return show_bytes(value) if value >= 2**20 else f"{value:,.0f} B"
    number = f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return f"{number}{' ' + measurement.unit if measurement.unit else ''}"
