"""The recipe digits-segmentation: its figures equal those of an independent evaluation of every file."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from bare_runtimes import FORMATS, Floats, answers, snr_db
from edgeopt.commands.optimize import optimize
from edgeopt.results import Report
from needs import needs

needs("tensorflow", "keras", "ai_edge_litert", "ai_edge_quantizer", "tf2onnx", "onnxruntime", "sklearn")
needs("torch", "torchao", "executorch")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_workers")]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CELLS = [(variant, format_name) for variant in ("float", "int8") for format_name in FORMATS]
# In a process of its own: TensorFlow and torch must not be loaded together.
SOURCE_SCORES = """
import sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1], compile=False)
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""

Maps = NDArray[np.int64]


class Run(NamedTuple):
    report: Report
    images: NDArray[np.float32]
    """``[n, 64, 64, 1]``, preprocessed."""
    masks: Maps
    source: Floats
    """``[n, 64, 64, 11]``: what Keras answers."""

    def value(self, variant: str, format_name: str, name: str) -> float:
        (row,) = [row for row in self.report.results if (row.variant, row.format) == (variant, format_name)]
        value = row.measurements[name].value
        assert isinstance(value, float)
        return value

    def scores(self, variant: str, format_name: str) -> Floats:
        """The scores ``[n, 64, 64, 11]`` that a file computes in its runtime, without edgeopt."""
        (row,) = [row for row in self.report.results if (row.variant, row.format) == (variant, format_name)]
        assert row.artifact is not None
        assert self.report.folder is not None
        (scores,) = answers(self.report.folder / row.artifact.path, self.images)
        assert scores.shape == self.source.shape
        return scores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("segmentation")
    given = ["latency={min_seconds: 0.01, min_runs: 3}"]
    report = optimize("digits-segmentation", out=folder / "run", store=folder / "store", overrides=given)
    assert report.exit_code == 0, report.gates

    spec = importlib.util.spec_from_file_location("canvases", RECIPES / "digits" / "canvases.py")
    assert spec is not None
    assert spec.loader is not None
    canvases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(canvases)
    samples, masks = zip(*canvases.segmentation("evaluation"), strict=True)
    images = np.stack(samples).astype(np.float32) * np.float32(1 / 255)

    np.save(folder / "images.npy", images)
    files = [RECIPES / "digits" / "segmentation.keras", folder / "images.npy", folder / "scores.npy"]
    subprocess.run([sys.executable, "-c", SOURCE_SCORES, *map(str, files)], check=True)
    return Run(report, images, np.stack(masks), np.load(folder / "scores.npy").astype(np.float64))


def miou(masks: Maps, found: Maps) -> float:
    from sklearn.metrics import jaccard_score

    return float(jaccard_score(masks.ravel(), found.ravel(), average="macro"))


def test_every_cell_passes(run: Run) -> None:
    assert {(row.variant, row.format) for row in run.report.results} == set(CELLS)
    assert [row.reason for row in run.report.results if row.status != "ok"] == []
    assert {verdict.status for verdict in run.report.gates} == {"pass"}
    for format_name in FORMATS:
        assert run.value("float", format_name, "miou") >= 0.85
        assert run.value("int8", format_name, "miou_drop") <= 0.005


@pytest.mark.parametrize(("variant", "format_name"), CELLS)
def test_the_figures_equal_an_independent_evaluation(run: Run, variant: str, format_name: str) -> None:
    scores = run.scores(variant, format_name)
    found, before = scores.argmax(-1), run.source.argmax(-1)
    assert run.value(variant, format_name, "miou") == pytest.approx(miou(run.masks, found), abs=1e-6)
    accuracy = (found == run.masks).mean()
    assert run.value(variant, format_name, "pixel_accuracy") == pytest.approx(accuracy, abs=1e-6)
    # Not whether all pixels of a canvas are equal, but how many.
    agreement = (found == before).mean(axis=(1, 2)).mean()
    assert run.value(variant, format_name, "agreement") == pytest.approx(agreement, abs=1e-6)
    if variant == "int8":  # that of float files is of the last bits, which depend on the batch size
        snr = run.value(variant, format_name, "fidelity_snr_db")
        assert snr == pytest.approx(snr_db(scores, run.source), abs=1e-3)


def test_the_source_model_is_what_the_drop_is_measured_from(run: Run) -> None:
    expected = miou(run.masks, run.source.argmax(-1))
    assert run.report.source is not None
    assert run.report.source.measurements["miou"].value == pytest.approx(expected, abs=1e-6)
    for cell in CELLS:
        assert run.value(*cell, "miou_drop") == pytest.approx(expected - run.value(*cell, "miou"), abs=1e-6)
