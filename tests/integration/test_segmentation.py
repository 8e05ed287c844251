"""The recipe digits-segmentation: its figures equal those of an independent evaluation of the files."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.commands.optimize import optimize
from edgeopt.results import Report
from needs import needs

needs("tensorflow", "keras", "ai_edge_litert", "onnxruntime", "sklearn")
pytestmark = pytest.mark.slow

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
CELLS = [(variant, format_name) for variant in ("float", "int8") for format_name in ("tflite", "onnx")]
# In a process of its own: TensorFlow and torch must not be loaded together.
SOURCE_MAPS = """
import sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1], compile=False)
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0).argmax(-1))
"""

Images = NDArray[np.float32]
Maps = NDArray[np.int64]


class Run(NamedTuple):
    report: Report
    images: Images
    """``[n, 64, 64, 1]``, preprocessed."""
    masks: Maps
    source: Maps
    """What Keras answers."""

    def value(self, variant: str, format_name: str, name: str) -> float:
        (row,) = [r for r in self.report.results if (r.variant, r.format) == (variant, format_name)]
        value = row.measurements[name].value
        assert isinstance(value, float)
        return value

    def maps(self, variant: str, format_name: str) -> Maps:
        """The class of each pixel, by the runtime of the format, without edgeopt."""
        assert self.report.folder is not None
        file = self.report.folder / "models" / f"{variant}.{format_name}"
        run = _litert if format_name == "tflite" else _onnxruntime
        return np.stack([scores.argmax(-1) for scores in run(file, self.images)])


def _litert(file: Path, images: Images) -> Iterable[NDArray[np.float32]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == found["dtype"] == np.float32
    for image in images:
        interpreter.set_tensor(given["index"], image[np.newaxis])
        interpreter.invoke()
        yield interpreter.get_tensor(found["index"])[0]


def _onnxruntime(file: Path, images: Images) -> Iterable[NDArray[np.float32]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for image in images:
        yield session.run(None, {given.name: image[np.newaxis]})[0][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("segmentation")
    recipe = RECIPES / "digits-segmentation.yaml"
    given = ["formats=[tflite, onnx]", "latency={min_seconds: 0.01, min_runs: 3}"]
    report = optimize(recipe, out=folder / "run", store=folder / "store", overrides=given)
    assert report.exit_code == 0, report.gates

    spec = importlib.util.spec_from_file_location("canvases", RECIPES / "digits" / "canvases.py")
    assert spec is not None
    assert spec.loader is not None
    canvases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(canvases)
    samples, masks = zip(*canvases.segmentation("evaluation"), strict=True)
    images = np.stack(samples).astype(np.float32) / np.float32(255)

    np.save(folder / "images.npy", images)
    files = [RECIPES / "digits" / "segmentation.keras", folder / "images.npy", folder / "maps.npy"]
    subprocess.run([sys.executable, "-c", SOURCE_MAPS, *map(str, files)], check=True)
    return Run(report, images, np.stack(masks), np.load(folder / "maps.npy"))


def test_every_cell_passes(run: Run) -> None:
    assert {(row.variant, row.format) for row in run.report.results} == set(CELLS)
    assert [row.reason for row in run.report.results if row.status != "ok"] == []
    assert {verdict.status for verdict in run.report.gates} == {"pass"}
    for format_name in ("tflite", "onnx"):
        assert run.value("float", format_name, "miou") >= 0.85
        assert run.value("int8", format_name, "miou_drop") <= 0.005


@pytest.mark.parametrize(("variant", "format_name"), CELLS)
def test_the_figures_equal_an_independent_evaluation(run: Run, variant: str, format_name: str) -> None:
    from sklearn.metrics import jaccard_score

    found = run.maps(variant, format_name)
    miou = jaccard_score(run.masks.ravel(), found.ravel(), average="macro")
    assert run.value(variant, format_name, "miou") == pytest.approx(miou, abs=1e-6)
    accuracy = (found == run.masks).mean()
    assert run.value(variant, format_name, "pixel_accuracy") == pytest.approx(accuracy, abs=1e-6)
    # Not whether all pixels of a canvas are equal, but how many.
    agreement = np.mean([(one == other).mean() for one, other in zip(found, run.source, strict=True)])
    assert run.value(variant, format_name, "agreement") == pytest.approx(agreement, abs=1e-6)


def test_the_source_model_is_what_the_drop_is_measured_from(run: Run) -> None:
    from sklearn.metrics import jaccard_score

    miou = jaccard_score(run.masks.ravel(), run.source.ravel(), average="macro")
    assert run.report.source is not None
    measured = run.report.source.measurements["miou"].value
    assert measured == pytest.approx(miou, abs=1e-6)
    drop = run.value("int8", "onnx", "miou_drop")
    assert drop == pytest.approx(miou - run.value("int8", "onnx", "miou"), abs=1e-6)
