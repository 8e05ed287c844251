"""The recipe digits-detection: its figures equal those of an independent evaluation of every file."""

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from bare_runtimes import FORMATS, Floats, answers, snr_db
from edgeopt.commands.optimize import optimize
from edgeopt.results import Measurement, Report, Result
from needs import needs

needs(
    "pycocotools", "ai_edge_litert", "ai_edge_quantizer", "onnxruntime", "onnxscript", "torch", "litert_torch"
)
needs("executorch", "torchao")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_workers")]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CELLS = [(variant, format_name) for variant in ("float", "int8") for format_name in FORMATS]
# In ExecuTorch, the search takes longer than all the rest; for this network, another calibration is enough.
GIVEN = (
    "optimize={float: {}, int8: {quantize: {scheme: int8, max_drop: 0.005, "
    "executorch: {max_drop: null, calibrator: percentile}}}}",
    "latency={min_seconds: 0.01, min_runs: 3}",
)
Boxes: TypeAlias = list[tuple[Floats, float, int]]
"""Corners in pixels, score and class, by decreasing score."""


class Run(NamedTuple):
    report: Report
    images: NDArray[np.float32]
    """``[n, 1, 64, 64]``, preprocessed."""
    labels: list[Floats]
    """``[k, 6]`` for each image."""
    source: Floats
    """``[n, 14, 320]``: what the network answers in PyTorch."""

    def result(self, variant: str, format_name: str) -> Result:
        (row,) = [row for row in self.report.results if (row.variant, row.format) == (variant, format_name)]
        assert row.status == "ok", row.reason
        return row

    def raw(self, variant: str, format_name: str) -> Floats:
        """The raw heads ``[n, 14, 320]`` that a file computes in its runtime, without edgeopt."""
        artifact = self.result(variant, format_name).artifact
        assert artifact is not None
        assert self.report.folder is not None
        (heads,) = answers(self.report.folder / artifact.path, self.images)
        return heads


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("detection")
    report = optimize("digits-detection", out=folder / "run", store=folder / "store", overrides=GIVEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        samples = list(importlib.import_module("digits.canvases").detection("evaluation"))
        network = importlib.import_module("digits.detector").digits_detector().eval()
    for name in [name for name in sys.modules if name.partition(".")[0] == "digits"]:
        del sys.modules[name]
    images = np.stack([image[:, :, 0] for image, _ in samples])[:, np.newaxis].astype(np.float32)
    images *= np.float32(1 / 255)
    network.load_state_dict(load_file(RECIPES / "digits" / "detector.safetensors"))
    with torch.no_grad():
        source = network(torch.from_numpy(images)).numpy().astype(np.float64)
    return Run(report, images, [np.asarray(boxes, np.float64) for _, boxes in samples], source)


def values(measurements: dict[str, Measurement], *names: str) -> list[float]:
    return [float(measurements[name].value) for name in names]


# An evaluation that shares no code with edgeopt


def overlap(one: Floats, other: Floats) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    both = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return float(shared / (both - shared)) if shared > 0 else 0.0


def decode(raw: Floats) -> Boxes:
    """The boxes of a raw head ``[14, 320]``, after suppression at an IoU of 0.5."""
    assert raw.shape == (14, 320)
    scores = 1 / (1 + np.exp(-raw[4:]))
    candidates = []
    for category, cell in np.argwhere(scores >= 0.05).tolist():
        stride, place = (4, cell) if cell < 256 else (8, cell - 256)
        row, column = divmod(place, 64 // stride)
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        left, top, right, bottom = raw[:4, cell] * stride
        box = np.array([x - left, y - top, x + right, y + bottom])
        candidates.append((box, float(scores[category, cell]), category))
    candidates.sort(key=lambda each: -each[1])
    kept: Boxes = []
    for one in candidates:
        if not any(one[2] == other[2] and overlap(one[0], other[0]) > 0.5 for other in kept):
            kept.append(one)
    return kept[:100]


def average_precisions(found: Sequence[Boxes], labels: Sequence[Floats]) -> list[float]:
    """AP and AP50 of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def as_coco(image: int, box: Any, category: float, **others: float) -> dict[str, Any]:
        x1, y1, x2, y2 = map(float, box)
        size = [x2 - x1, y2 - y1]
        return {"image_id": image, "category_id": int(category), "bbox": [x1, y1, *size], **others}

    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for index, (boxes, known) in enumerate(zip(found, labels, strict=True), 1):
        for label in known:
            truth = as_coco(index, label[:4], label[4], id=len(annotations) + 1, iscrowd=0)
            annotations.append(truth | {"area": truth["bbox"][2] * truth["bbox"][3]})
        detections += [as_coco(index, box, category, score=score) for box, score, category in boxes]
    truths = COCO()
    truths.dataset = {
        "info": {},
        "images": [{"id": index + 1} for index in range(len(labels))],
        "annotations": annotations,
        "categories": [{"id": category} for category in range(10)],
    }
    truths.createIndex()
    evaluation = COCOeval(truths, truths.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(each) for each in evaluation.stats[:2]]


def same_boxes(one: Boxes, other: Boxes) -> float:
    """F-measure of the confident boxes of two answers: pairs of one class, those that overlap most first."""
    ours, others = ([each for each in boxes if each[1] >= 0.3] for boxes in (one, other))
    pairs = [
        (overlap(a[0], b[0]), i, j) for i, a in enumerate(ours) for j, b in enumerate(others) if a[2] == b[2]
    ]
    left, right, matched = set(range(len(ours))), set(range(len(others))), 0
    for shared, i, j in sorted(pairs, reverse=True):
        if shared >= 0.5 and i in left and j in right:
            left.remove(i)
            right.remove(j)
            matched += 1
    return 2 * matched / (len(ours) + len(others)) if ours or others else 1.0


@pytest.mark.parametrize(("variant", "format_name"), CELLS)
def test_the_figures_equal_an_independent_evaluation(run: Run, variant: str, format_name: str) -> None:
    measured = run.result(variant, format_name).measurements
    raw = run.raw(variant, format_name)
    found, source = ([decode(head) for head in heads] for heads in (raw, run.source))
    expected = average_precisions(found, run.labels)
    assert values(measured, "map50_95", "map50") == pytest.approx(expected, abs=1e-6)
    assert measured["agreement"].n == len(run.images) == 400
    agreement = np.mean([same_boxes(one, other) for one, other in zip(found, source, strict=True)])
    assert values(measured, "agreement") == pytest.approx([agreement], abs=1e-6)
    if variant == "int8":  # that of float files is of the last bits, which depend on the batch size
        assert values(measured, "fidelity_snr_db") == pytest.approx([snr_db(raw, run.source)], abs=1e-3)


def test_the_source_model_is_what_drops_are_measured_from(run: Run) -> None:
    assert run.report.source is not None
    expected = average_precisions([decode(head) for head in run.source], run.labels)
    assert values(run.report.source.measurements, "map50_95", "map50") == pytest.approx(expected, abs=1e-6)
    assert expected[1] >= 0.90
    for cell in CELLS:
        whole, drop = values(run.result(*cell).measurements, "map50_95", "map50_95_drop")
        assert drop == pytest.approx(expected[0] - whole, abs=1e-6)


def test_every_artifact_is_good_enough(run: Run) -> None:
    assert len(run.report.results) == len(CELLS)
    for variant, format_name in CELLS:
        result = run.result(variant, format_name)
        drop, agreement, error = values(result.measurements, "map50_95_drop", "agreement", "max_abs_error")
        assert drop <= 0.01
        if variant == "float":
            assert abs(drop) < 1e-3
            assert agreement >= 0.999
            assert error < 1e-3
        for hop in result.hops:
            assert hop.status == "ok", hop.reason
            assert len(hop.outputs) == 1  # the raw head


def test_the_gates_judge_the_drops(run: Run) -> None:
    judged = [each for each in run.report.gates if each.gate.startswith("map50_95 max_drop")]
    assert len(judged) == len(CELLS)
    for verdict in judged:
        (drop,) = values(run.result(verdict.variant, verdict.format).measurements, "map50_95_drop")
        assert verdict.measured == pytest.approx(drop, abs=1e-12)
        assert verdict.status == ("pass" if drop <= verdict.limit else "fail")
    assert run.report.exit_code == 0


@pytest.mark.parametrize("format_name", ["tflite", "torchscript"])  # TorchScript does not declare its inputs
def test_profile_measures_a_file_as_the_recipe_does(run: Run, format_name: str) -> None:
    result = run.result("int8", format_name)
    assert result.artifact is not None
    assert run.report.folder is not None
    file, recipe = run.report.folder / result.artifact.path, RECIPES / "digits-detection.yaml"
    quick = ["--min-runs", "2", "--min-seconds", "0"]
    command = [
        sys.executable,
        "-m",
        "edgeopt",
        "profile",
        str(file),
        "--recipe",
        str(recipe),
        "--json",
        *quick,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (measured,) = Report.model_validate_json(done.stdout).results
    assert values(measured.measurements, "map50_95", "map50") == pytest.approx(
        values(result.measurements, "map50_95", "map50"), abs=1e-9
    )
