"""Shipped recipes of other tasks than classification, compared with evaluations of their own."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.commands.optimize import optimize
from edgeopt.results import Measurement, Report, Result

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

pytestmark = pytest.mark.slow

Floats: TypeAlias = NDArray[np.float64]
Runner: TypeAlias = Callable[[Floats], Floats]


@pytest.fixture(scope="module")
def detection(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run of the recipe digits-detection in two formats."""
    for name in ("pycocotools", "ai_edge_litert", "onnxruntime", "torch", "litert_torch", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"not installed: {name}")
    return optimize(
        "digits-detection",
        out=tmp_path_factory.mktemp("detection"),
        store=tmp_path_factory.mktemp("store"),
        overrides=["formats=[tflite,onnx]"],
    )


@pytest.fixture(scope="module")
def canvases() -> tuple[Floats, list[Floats]]:
    """The evaluation data of the recipe: images ``[n, 64, 64]`` in 0..1, and labels ``[k, 6]`` each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        samples = list(importlib.import_module("digits.canvases").detection("evaluation"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "digits"]:
        del sys.modules[name]
    images = np.stack([image[:, :, 0] for image, _ in samples]) / 255
    return images, [np.asarray(boxes, np.float64) for _, boxes in samples]


def row(report: Report, variant: str, format_name: str) -> Result:
    (found,) = [each for each in report.results if (each.variant, each.format) == (variant, format_name)]
    return found


def values(measurements: dict[str, Measurement], *names: str) -> list[float]:
    return [float(measurements[name].value) for name in names]


# An evaluation that shares no code with edgeopt


def run_tflite(path: Path) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: Floats) -> Floats:
        data = image.astype(np.float32).reshape(given["shape"])
        if given["dtype"] != np.float32:
            scale, zero_point = given["quantization"]
            data = np.clip(np.round(data / scale) + zero_point, -128, 127).astype(given["dtype"])
        interpreter.set_tensor(given["index"], data)
        interpreter.invoke()
        raw: Floats = interpreter.get_tensor(made["index"])[0].astype(np.float64)
        if made["dtype"] != np.float32:
            scale, zero_point = made["quantization"]
            raw = (raw - zero_point) * scale
        return raw

    return run


def run_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(image: Floats) -> Floats:
        (raw,) = session.run(None, {given.name: image.astype(np.float32).reshape(given.shape)})
        return np.asarray(raw[0], np.float64)

    return run


def overlap(one: Floats, other: Floats) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    both = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return float(shared / (both - shared)) if shared > 0 else 0.0


def decode(raw: Floats) -> list[tuple[Floats, float, int]]:
    """Boxes, scores and classes of a raw head ``[14, 320]``, after suppression at an IoU of 0.5."""
    assert raw.shape == (14, 320)
    candidates = []
    for cell in range(320):
        stride, place = (4, cell) if cell < 256 else (8, cell - 256)
        row, column = divmod(place, 64 // stride)
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        left, top, right, bottom = raw[:4, cell] * stride
        box = np.array([x - left, y - top, x + right, y + bottom])
        for category in range(10):
            score = 1 / (1 + np.exp(-raw[4 + category, cell]))
            if score >= 0.05:
                candidates.append((box, float(score), category))
    candidates.sort(key=lambda each: -each[1])
    kept: list[tuple[Floats, float, int]] = []
    for one in candidates:
        if not any(one[2] == other[2] and overlap(one[0], other[0]) > 0.5 for other in kept):
            kept.append(one)
    return kept[:100]


def average_precisions(run: Runner, canvases: tuple[Floats, list[Floats]]) -> list[float]:
    """AP and AP50 of pycocotools."""
    coco, cocoeval = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))

    def as_coco(image: int, box: Any, category: float, **others: float) -> dict[str, Any]:
        x1, y1, x2, y2 = map(float, box)
        size = [x2 - x1, y2 - y1]
        return {"image_id": image, "category_id": int(category), "bbox": [x1, y1, *size], **others}

    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for index, (image, labels) in enumerate(zip(*canvases, strict=True), 1):
        for label in labels:
            known = as_coco(index, label[:4], label[4], id=len(annotations) + 1, iscrowd=0)
            annotations.append(known | {"area": known["bbox"][2] * known["bbox"][3]})
        found += [as_coco(index, box, category, score=score) for box, score, category in decode(run(image))]
    truths = coco.COCO()
    truths.dataset = {
        "info": {},
        "images": [{"id": index + 1} for index in range(len(canvases[0]))],
        "annotations": annotations,
        "categories": [{"id": category} for category in range(10)],
    }
    truths.createIndex()
    evaluation = cocoeval.COCOeval(truths, truths.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(each) for each in evaluation.stats[:2]]


@pytest.mark.parametrize(
    ("variant", "format_name", "runner"), [("float", "tflite", run_tflite), ("int8", "onnx", run_onnx)]
)
def test_detection_is_scored_as_by_pycocotools(
    detection: Report,
    canvases: tuple[Floats, list[Floats]],
    variant: str,
    format_name: str,
    runner: Callable[[Path], Runner],
) -> None:
    result = row(detection, variant, format_name)
    assert result.status == "ok", result.reason
    assert result.artifact is not None
    assert detection.folder is not None
    expected = average_precisions(runner(detection.folder / result.artifact.path), canvases)
    assert values(result.measurements, "map50_95", "map50") == pytest.approx(expected, abs=1e-6)
    assert result.measurements["agreement"].n == len(canvases[0]) == 400


def test_detection_of_every_artifact(detection: Report) -> None:
    assert detection.source is not None
    (source,) = values(detection.source.measurements, "map50_95")
    for result in detection.results:
        assert result.status == "ok", result.reason
        whole, half, drop, agreement = values(
            result.measurements, "map50_95", "map50", "map50_95_drop", "agreement"
        )
        assert drop == pytest.approx(source - whole, abs=1e-9)
        assert whole < half <= 1
        if result.variant == "float":
            assert half >= 0.90
            assert abs(drop) < 1e-3
            assert agreement >= 0.999
            assert values(result.measurements, "max_abs_error")[0] < 1e-3
        for hop in result.hops:
            assert hop.status == "ok", hop.reason
            assert len(hop.outputs) == 1  # the raw head


def test_detection_exits_as_its_gates_say(detection: Report) -> None:
    drops = {
        (each.variant, each.format): values(each.measurements, "map50_95_drop")[0]
        for each in detection.results
    }
    judged = [each for each in detection.gates if each.gate.startswith("map50_95 max_drop")]
    assert len(judged) == len(detection.results)
    for verdict in judged:
        assert verdict.measured == pytest.approx(drops[verdict.variant, verdict.format], abs=1e-12)
        assert verdict.status == ("pass" if verdict.measured <= verdict.limit else "fail")
    assert max(drops.values()) <= 0.01
    assert detection.exit_code == 0
