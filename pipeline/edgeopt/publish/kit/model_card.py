"""The model card of a bundle, in the format of the Hugging Face Hub.

Source of the format: https://huggingface.co/docs/hub/model-cards and its ``model-index``. The card states
measurements only: licence, training data and intended use are unknown to a run.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from edgeopt.config.units import show_bytes
from edgeopt.formats.known import format_named
from edgeopt.model import Preprocessing
from edgeopt.publish.contract import Contract, Raw, Used
from edgeopt.publish.kit.c_names import one_line
from edgeopt.publish.kit.contents import contents, golden
from edgeopt.results import MEASUREMENTS, SPARSE, Measurement, Report

FILE = "MODEL_CARD.md"
HUB_NAMES = {"top1": "accuracy", "top5": "top_5_accuracy", "roc_auc": "roc_auc", "mean_squared_error": "mse"}
"""The Hub's names of metrics that differ from edgeopt's."""
MEANINGS = {name: shown.meaning for name, shown in MEASUREMENTS.items()} | {
    "fidelity_snr_db": "signal-to-noise ratio of the outputs relative to the source model",
    "agreement": "mean agreement of the decisions with those of the source model",
    "max_abs_error": "largest difference between an output and the source model's",
}
"""Descriptions of measurements with names that are not self-explanatory."""
OF_DROPS = {
    "worst_class_drop": "drop of the class with the largest drop",
    "drop": "drop relative to the source model; negative: gain",
}
ELSEWHERE = re.compile(r"device \S+ has no runtime for |\S+ (is built, but not measured|will fail) on \S+: ")
"""Notes of a run about missing measurements, which never concern a published artifact."""


def model_card(contract: Contract, report: Report, present: Collection[str] = ()) -> str:
    """The text of ``MODEL_CARD.md``; ``present``: the other files in the folder."""
    parts = [
        _front_matter(contract, report),
        f"# {text(contract.name)} {text(contract.version)}",
        f"`{text(contract.file.name)}` ({contract.size_bytes:,} bytes), "
        f"variant **{text(contract.variant)}** in format {contract.format}, "
        f"for the device **{text(contract.device)}**.",
        contents(contract, present),
        _inputs(contract),
        _measured(contract),
        _made(contract, report),
        _limits(contract, report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def quality(contract: Contract) -> dict[str, Measurement]:
    """The measured quality metrics."""
    return {name: value for name, value in contract.measured.items() if value.role == "quality"}


def _front_matter(contract: Contract, report: Report) -> str:
    metrics = quality(contract)
    about: dict[str, Any] = {
        "library_name": format_named(contract.format).library or contract.format,
        "tags": ["edgeopt", contract.format, one_line(contract.variant), one_line(contract.device)],
    }
    if metrics:
        digest = report.run.evaluation_digest
        about["metrics"] = [HUB_NAMES.get(name, name) for name in metrics]
        results = {
            # The recipe does not declare the kind of task.
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
            shape = " × ".join("dynamic" if size is None else str(size) for size in spec.shape)
            lines.append(
                f"| {side} {text(spec.name)} | {shape} | {spec.dtype} | {spec.layout or '–'} | "
                f"{'–' if spec.scale is None else f'{spec.scale:.9g}'} | "
                f"{'–' if spec.zero_point is None else spec.zero_point} |"
            )
    lines.append("")
    if isinstance(contract.preprocessing, Preprocessing):
        lines += _raw_samples(contract.raw, contract.preprocessing)
    else:
        for index, (spec, steps) in enumerate(zip(contract.inputs, contract.preprocessing, strict=True)):
            raw, how = _raw_samples(contract.raw[index : index + 1], steps)
            lines.append(f"- {text(spec.name)}: {raw} {how}")
    if contract.postprocess is not None:
        lines.append(f"Postprocessing, not part of the file: {_used(contract.postprocess)}.")
    for task in contract.tasks:
        read = f" of {text(', '.join(task.outputs))}" if task.outputs else ""
        lines.append(f"Task{read}: {_used(task)}.")
    if contract.labels:
        named = ", ".join(text(label) for label in contract.labels[:20])
        more = f" and {len(contract.labels) - 20} more, see labels.txt" if len(contract.labels) > 20 else ""
        lines.append(f"Classes, in the order of the outputs: {named}{more}.")
    return "\n".join(lines)


def _used(used: Used) -> str:
    options = ", ".join(f"{name} {value}" for name, value in used.options.items())
    return text(f"{used.uses} ({options})" if options else used.uses)


def _raw_samples(raw: Sequence[Raw], preprocessing: Preprocessing) -> tuple[str, str]:
    """What samples are before preprocessing, and the preprocessing."""
    steps = [f"× {preprocessing.scale:.9g}"] if preprocessing.scale != 1.0 else []
    steps += [f"− {_numbers(preprocessing.mean)}"] if preprocessing.mean else []
    steps += [f"÷ {_numbers(preprocessing.std)}"] if preprocessing.std else []
    shapes = ", ".join(f"{' × '.join(map(str, r.shape)) or 'one value'} {r.dtype}" for r in raw)
    return (
        f"Raw samples: {shapes or 'unknown'}{f', {preprocessing.layout}' if preprocessing.layout else ''}.",
        f"Preprocessing: {', then '.join(steps) or 'none, values are used unchanged'}.",
    )


def _measured(contract: Contract) -> str:
    estimated = "estimated_latency_ms" in contract.measured
    heading = "Estimated for" if estimated else "Measured on"
    lines = [
        f"## {heading} {text(contract.device)}{' (emulated)' if contract.emulated else ''}",
        "",
    ]
    if estimated:
        lines += [
            "Cycles, time and memory are estimates of the device's compiler; nothing was run on the device.",
            "",
        ]
    if contract.emulated:
        lines += [
            "Emulated: the runtime's own kernels, run on another processor. Accuracy and memory are valid; "
            "latency was not measured.",
            "",
        ]
    lines += [
        f"Runtime: {text(contract.runtime) or 'unknown'}.",
        "",
    ]
    lines += ["| measurement | value | 95 % interval | samples or runs |", "|---|---:|---|---:|"]
    for name, value in contract.measured.items():
        if not _readable(name, value):
            continue
        interval = "–" if value.ci95 is None else " … ".join(_value(value, end) for end in value.ci95)
        count = "–" if value.n is None else f"{value.n:,}"
        lines.append(f"| {_explained(name, value)} | {_value(value, value.value)} | {interval} | {count} |")
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
    lines = ["## Provenance", ""]
    if source is not None:
        lines.append(
            f"Built from the {source.format} model `{text(source.path)}` (sha256 `{source.digest}`) "
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
                f"- {smallest.n:,} samples cannot detect a drop of {name} smaller than {_size(smallest)} "
                "(power 80 %, confidence 95 %)."
                if smallest.n is not None
                else f"- A drop of {name} smaller than {_size(smallest)} cannot be detected."
            )
    lines.append(
        f"- Evaluation data: {report.run.samples:,} samples, digest `{report.run.evaluation_digest or '–'}`."
    )
    lines += [f"- {text(note)}" for note in (*contract.notes, *report.run.notes) if not ELSEWHERE.match(note)]
    lines.append("- The behaviour on data that differ from the evaluation data is unknown.")
    return "\n".join(lines)


def _readable(name: str, value: Measurement) -> bool:
    """Whether a measurement is useful in one bundle: others compare devices or appear as text."""
    if value.role in ("parity", "detectable_drop"):
        return False
    return name != "sparsity" or value.value > SPARSE


def _explained(name: str, value: Measurement) -> str:
    meaning = OF_DROPS.get(value.role) or MEANINGS.get(name, "")
    return f"{text(name)}: {meaning}" if meaning else text(name)


def text(value: str) -> str:
    """Text with Markdown characters escaped."""
    flat = one_line(value)
    for sign, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'"), ("*", "\\*")):
        flat = flat.replace(sign, escaped)
    return flat


def _size(smallest: Measurement) -> str:
    return smallest.text.lstrip("+")


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.9g}" for value in values) + (" per channel" if len(values) > 1 else "")


def _value(measurement: Measurement, value: float) -> str:
    if measurement.unit == "bytes":
        return show_bytes(value) if value >= 2**20 else f"{value:,.0f} B"
    number = f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return f"{number}{' ' + measurement.unit if measurement.unit else ''}"
