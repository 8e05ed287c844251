"""A synthetic report: many variants, formats and devices, with everything that the page can show."""

import hashlib
from typing import Any

import numpy as np

from edgeopt.reports.thumbnails import data_uri
from edgeopt.results import (
    Artifact,
    Boxes,
    Breakdown,
    ByClass,
    ClassChange,
    Confusion,
    Findings,
    Flip,
    Hop,
    LayerBytes,
    MemoryLimits,
    Plot,
    Reference,
    Report,
    Result,
    Run,
    SampleChange,
    SourceResult,
    Trial,
    Verdict,
    recommend,
)
from edgeopt.results.findings import MAX_SAMPLES

VARIANTS = {
    "float": (0.912, 4.0, 1.0),
    "float16": (0.911, 2.0, 0.98),
    "dynamic": (0.908, 1.1, 0.8),
    "int8": (0.899, 1.0, 0.55),
    "int4": (0.861, 0.6, 0.6),
    "pruned-int8": (0.892, 0.7, 0.42),
}
"""Accuracy, size and latency, as shares of a float file's."""
FORMATS = {"tflite": 1.0, "onnx": 1.06, "torchscript": 1.4, "executorch": 1.2}
DEVICES = {"host": 1.0, "raspberry-pi-4": 6.0, "phone": 2.5, "cortex-m": 90.0}

WORDS = ("down", "go", "left", "no", "off", "on")

RUN = Run(
    started="2026-01-01T00:00:00+00:00",
    seconds=312.4,
    command="edgeopt optimize recipes/words.yaml --out out",
    edgeopt="0.1.0",
    recipe_digest="c0" * 32,
    evaluation_digest="ee" * 32,
    samples=1000,
    document="version: 1\nname: words\nmodel: {path: words.keras}\n",
    notes=("float.tflite is built, but not measured on an NPU: its operators are for integers",),
)


def large_report(
    variants: int = 6,
    formats: int = 4,
    devices: int = 4,
    layers: int = 80,
    pictures: int = 0,
    boxes: int = 0,
) -> Report:
    """All combinations, one failed and one skipped, with gates of all three verdicts.

    With ``boxes``, every artifact has findings as of a detector of 80 classes, with as many boxes per sample.
    """
    results = [
        _result(variant, form, device, at, layers)
        for at, (variant, form, device) in enumerate(
            (variant, form, device)
            for variant in list(VARIANTS)[:variants]
            for form in list(FORMATS)[:formats]
            for device in list(DEVICES)[:devices]
        )
    ]
    if len(results) > 20:
        results[11] = _missing(results[11], "failed", "quantize_onnx: Conv_3: no kernel for int4; use int8")
        results[18] = _missing(results[18], "skipped", "phone: no answer within 10 s")
    if boxes:
        results = [row.model_copy(update={"findings": (_findings(boxes, row.variant),)}) for row in results]
    gates = tuple(verdict for result in results for verdict in _verdicts(result))
    return Report(
        recipe="words",
        run=RUN,
        environment={
            name: {"cpu": f"CPU of {name}", "cores": 4, "runtimes": {"litert": "2.3.0"}}
            for name in list(DEVICES)[:devices]
        },
        source=SourceResult(
            format="tf_keras",
            path="words.keras",
            digest="5a" * 32,
            size_bytes=1_150_079,
            runtime="keras 3.15.1",
            measurements={"top1": {"value": 0.912, "n": 1000, "ci95": (0.894, 0.929)}},
        ),
        results=tuple(results),
        gates=gates,
        recommended=recommend(results, gates),
        limits={"cortex-m": MemoryLimits(flash=1 << 20, ram=1 << 18)},
        labels=WORDS,
        thumbnails={7 * number: _picture(number) for number in range(pictures)},
        image_size=(48, 48) if pictures else None,
        references=tuple(
            Reference(sample=7 * number, label=_boxes(boxes, number), source=_boxes(boxes, number))
            for number in range(MAX_SAMPLES if boxes else 0)
        ),
    )


def _boxes(count: int, number: int) -> Boxes:
    random = np.random.default_rng(number)
    corners = np.sort(random.uniform(0, 48, (count, 2, 2)), axis=1).reshape(count, 4)
    return Boxes.of(corners, random.integers(0, 80, count).tolist(), random.uniform(0.3, 1, count).tolist())


def _findings(boxes: int, variant: str) -> Findings:
    recall = np.linspace(0, 1, 101)
    values = np.linspace(0.4, 0.9, 80)
    return Findings(
        changed=90,
        worse=60,
        samples=tuple(
            SampleChange(
                sample=7 * number, agreement=0.5, worse=True, artifact=_boxes(boxes, number + len(variant))
            )
            for number in range(MAX_SAMPLES)
        ),
        charts=(
            Plot.of("line", "precision", ("recall", "precision"), recall, 1 - recall**4, 1 - recall**3),
            ByClass.of("precision", "objects", range(80), [9] * 80, values.tolist(), (values - 0.1).tolist()),
        ),
    )


def _picture(number: int) -> str:
    pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
    return data_uri(pixels)


def _missing(result: Result, status: str, reason: str) -> Result:
    changes = {"status": status, "reason": reason, "measurements": {}, "hops": (), "layers": (), "flips": ()}
    return result.model_copy(update=changes)


def _result(variant: str, form: str, device: str, at: int, layers: int) -> Result:
    top1, size, speed = VARIANTS[variant]
    top1 -= 0.002 * list(FORMATS).index(form)
    size_bytes = int(98_000 * size * FORMATS[form]) + 4_000
    latency = 0.21 * speed * FORMATS[form] * DEVICES[device]
    values: dict[str, Any] = {
        "size_bytes": (size_bytes, "bytes"),
        "latency_p50_ms": (latency, "ms", 400, (latency * 0.98, latency * 1.03)),
        "latency_p90_ms": (latency * 1.1, "ms", 400),
        "latency_min_ms": (latency * 0.9, "ms", 400),
        "latency_max_ms": (latency * 2.2, "ms", 400),
        "latency_p99_ms": (latency * 1.5, "ms", 400),
        "arena_bytes" if device == "cortex-m" else "peak_memory_bytes": (size_bytes // 2, "bytes"),
        "top1": (top1, "", 1000, (top1 - 0.018, top1 + 0.017)),
        "top1_drop": (0.912 - top1, "", 1000, (0.902 - top1, 0.921 - top1)),
        "top1_detectable_drop": (0.013, "", 1000),
        "agreement": (top1 + 0.07, "", 1000),
        "fidelity_snr_db": (20 + 40 * (top1 - 0.8), "dB"),
    }
    stages = ("keras_to_tflite", "quantize_tflite", "slim_tflite", device)
    return Result(
        variant=variant,
        format=form,
        device=device,
        status="ok",
        artifact=Artifact(
            path=f"models/{variant}.{form}",
            digest=hashlib.sha256(f"{variant}.{form}".encode()).hexdigest(),
            size_bytes=size_bytes,
            breakdown=Breakdown(
                parts={"weights int8": size_bytes - 4_000, "graph structure": 2_500, "names": 1_500},
                layers=tuple(
                    LayerBytes(
                        name=f"model/block_{number}/depthwise_conv2d_{number}/Relu",
                        kind="DEPTHWISE_CONV_2D",
                        size_bytes=(size_bytes - 4_000) // (number + 2),
                        macs=1_000_000 // (number + 1),
                    )
                    for number in range(layers)
                ),
            ),
        ),
        measurements={
            name: dict(**dict(zip(("value", "unit", "n", "ci95"), one, strict=False)))
            for name, one in values.items()
        },
        hops=tuple(
            Hop(
                stage=stage,
                produced=form,
                lossless=stage != "quantize_tflite",
                snr_db=31.5 + number,
                max_abs_error=0.01,
                agreement=0.99,
            )
            for number, stage in enumerate(stages)
        ),
        chain=stages[:3],
        transposes=2,
        runtime="litert 2.3.0",
        layers=tuple(
            {
                "name": f"model/block_{number}/depthwise_conv2d_{number}/Relu",
                "type": "DEPTHWISE_CONV_2D",
                "ms": latency / layers * (1 + number % 7),
                "bytes": 1200 + 16 * number,
                "precision": "int8",
            }
            for number in range(layers)
        ),
        notes=("the machine was busy: other programs used 1.0 cores while latency was measured",),
        flips=tuple(
            Flip(sample=7 * number, label=number % 5, answer=(number + 1) % 6, margin=1 - number / 70)
            for number in range(60)
        ),
        classes=tuple(
            ClassChange(label=number, n=160, before=150 - number, after=140 + number) for number in range(6)
        ),
        confusions=tuple(
            Confusion(label=number, answer=(number + step) % 6, before=3, after=3 + 2 * number - step)
            for number in range(6)
            for step in (1, 2, 3)
        ),
        trials=tuple(
            Trial(
                name="1 of 12 layers raised" if number else "0 of 12 layers raised",
                raised=(f"model/block_{number}",) if number else (),
                size_bytes=size_bytes + 1_000 * number,
                drop=0.02,
                snr_db=25.0 + 3.0 / (1 + number) if number else 25.0,
                samples=512,
                status="alone" if number else "dominated",
            )
            for number in range(13)
        )
        + tuple(
            Trial(
                name=f"int8, {number} layers in float",
                raised=tuple(f"model/block_{layer}" for layer in range(number)),
                size_bytes=size_bytes + 3_000 * number,
                drop=0.02 / (1 + number),
                agreement=0.97,
                snr_db=25.0 + number,
                samples=512,
                status="chosen" if number == 4 else "dominated" if number % 3 else "kept",
            )
            for number in range(1, 12)
        )
        if variant == "int8"
        else (),
        cached=at % 5 == 0,
    )


def _verdicts(result: Result) -> list[Verdict]:
    place = {"variant": result.variant, "format": result.format, "device": result.device}
    gate = "top1 max_drop 0.02 confidence=0.95"
    if "top1" not in result.measurements:
        told = f"not measured: {result.reason}"
        return [Verdict(gate=gate, **place, status="fail", limit=0.02, reason=told, blocks=True)]
    drop = result.measurements["top1_drop"].value
    bounds = (drop - 0.009, drop + 0.009)
    status = "fail" if bounds[0] > 0.02 else "pass" if bounds[1] < 0.02 else "undecided"
    reason = {"pass": "", "fail": f"top1 dropped by {drop:.3f}", "undecided": "the interval holds the limit"}
    size = Verdict(
        gate="size_bytes max 524288",
        **place,
        status="pass",
        measured=result.measurements["size_bytes"].value,
        limit=524288,
    )
    return [
        Verdict(
            gate=gate,
            **place,
            status=status,
            measured=drop,
            limit=0.02,
            reason=reason[status],
            blocks=status != "pass",
            confidence=0.95,
            bounds=bounds,
            p_value=0.01,
            samples_needed=4200 if status == "undecided" else None,
        ),
        size,
    ]
