"""Models with several inputs, given by name and preprocessed one by one, in every format."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.commands.optimize import optimize
from edgeopt.commands.profile import profile
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.evaluation.golden import COUNT
from edgeopt.publish.bundle import make_bundle
from edgeopt.recipe.document import Latency
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_workers")]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FORMATS = ("tflite", "onnx", "torchscript", "executorch")
ROWS = np.linspace(0, 63, COUNT).round().astype(int)
"""The samples of the golden vectors."""

COMMON = """
import sys
import numpy as np
folder = sys.argv[1]
random = np.random.default_rng(0)
images = random.integers(0, 256, (64, 8, 8, 3), np.uint8)
tokens = random.integers(0, 300, (64, 5), np.int64)
b, a = (random.normal(0, size, (64, 6)).astype(np.float32) for size in (1, 3))
prepared = (images.astype(np.float32) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
prepared = prepared.astype(np.float32)
"""
# difference = b - 2 a, and scores of the image and the tokens.
KERAS = (
    COMMON
    + """
import keras
from keras import layers as L
keras.utils.set_random_seed(0)
image, ids = L.Input((8, 8, 3), name="image"), L.Input((5,), dtype="int32", name="ids")
first, second = L.Input((6,), name="b"), L.Input((6,), name="a")
seen = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu", name="conv")(image))
words, mix = L.Embedding(300, 8, name="words"), L.Dense(6, use_bias=False, name="mix")
read = L.GlobalAveragePooling1D()(words(ids))
scores = L.Dense(4, name="scores")(L.Concatenate()([seen, read]))
difference = mix(L.Concatenate()([first, second]))
mix.set_weights([np.vstack([np.eye(6), -2 * np.eye(6)]).astype(np.float32)])
words.set_weights([random.normal(0, 1, (300, 8)).astype(np.float32)])
net = keras.Model([ids, first, image, second], [scores, difference])
net.save(folder + "/listed.keras")
inputs = {"image": image, "b": first, "a": second, "ids": ids}
keras.Model(inputs, {"scores": scores, "difference": difference}).save(folder + "/nested.keras")
scores = np.asarray(net([tokens.astype(np.int32), b, prepared, a])[0])
np.savez(folder + "/data.npz", pixels=images, tokens=tokens, b=b, a=a)
np.savez(folder + "/truth.npz", scores=scores, difference=b - 2 * a)
"""
)
TORCH = (
    COMMON
    + """
import torch
sys.path.insert(0, folder)
open(folder + "/nets.py", "w").write('''
import torch
class Doors(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.words = torch.nn.Embedding(300, 8)
        self.scores = torch.nn.Linear(16, 4)
        self.mix = torch.nn.Linear(12, 6, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.cat([torch.eye(6), -2 * torch.eye(6)], 1))
    def forward(self, ids, b, image, a):
        seen = torch.relu(self.conv(image)).mean((2, 3))
        joined = torch.cat([seen, self.words(ids).mean(1)], 1)
        return {"scores": self.scores(joined), "difference": self.mix(torch.cat([b, a], 1))}
''')
import nets
torch.manual_seed(0)
net = nets.Doors().eval()
torch.save(net.state_dict(), folder + "/doors.pt")
channels_first = np.ascontiguousarray(prepared.transpose(0, 3, 1, 2))
with torch.no_grad():
    found = net(*map(torch.from_numpy, (tokens, b, channels_first, a)))
np.savez(folder + "/data.npz", pixels=images.transpose(0, 3, 1, 2), tokens=tokens, b=b, a=a)
np.savez(folder + "/truth.npz", scores=found["scores"].numpy(), difference=b - 2 * a)
"""
)
RECIPE = """
version: 1
name: doors
model:
  {model}
  preprocess: {{image: {{scale: 1/255, mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4]}}}}
data:
  calibration: {data}
  evaluation: {data}
  allow_leak: true
optimize: {{int8: {{quantize: {{scheme: int8}}}}}}
formats: [tflite, onnx, torchscript, executorch]
latency: {{min_runs: 2, min_seconds: 0}}
"""
DATA = "{uses: npz, with: {path: data.npz, label: null, inputs: {a: a, b: b, ids: tokens, image: pixels}}}"
FACTORY = """factory: "nets:Doors"
  weights: doors.pt
  inputs:
    - {name: ids, shape: [1, 5], dtype: int64}
    - {name: b, shape: [1, 6]}
    - {name: image, shape: [1, 3, 8, 8], layout: NCHW}
    - {name: a, shape: [1, 6]}"""


class Ran(NamedTuple):
    report: Report
    truth: dict[str, NDArray[np.float32]]

    def outputs(self, variant: str, name: str) -> dict[str, NDArray[np.float32]]:
        """The outputs of the golden vectors, which have 4 and 6 values."""
        assert self.report.folder is not None
        with np.load(self.report.folder / "golden" / f"{variant}.{name}.host.npz") as archive:
            found = {archive[key].shape[1]: archive[key] for key in archive.files if key.startswith("output")}
        return {"scores": found[4], "difference": found[6]}

    def record(self, variant: str, suffix: str) -> dict[str, object]:
        assert self.report.folder is not None
        text = (self.report.folder / "models" / f"{variant}{suffix}.json").read_text()
        record: dict[str, object] = json.loads(text)
        return record


@pytest.fixture(scope="module", params=["listed", "nested", "torch"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    for name in ("keras", "torch", "litert_torch", "onnxruntime", "tf2onnx", "executorch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"not installed: {name}")
    folder = tmp_path_factory.mktemp(request.param)
    script = TORCH if request.param == "torch" else KERAS
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True)
    model = FACTORY if request.param == "torch" else f"path: {request.param}.keras"
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, data=DATA))
    report = optimize(folder / "recipe.yaml", out=folder / "out", store=folder / "store")
    with np.load(folder / "truth.npz") as truth:
        return Ran(report, {name: truth[name][ROWS] for name in truth.files})


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("variant", ["float", "int8"])
def test_every_input_arrives_where_it_belongs(ran: Ran, variant: str, name: str) -> None:
    (row,) = [each for each in ran.report.results if (each.variant, each.format) == (variant, name)]
    assert row.status == "ok", row.reason
    for output, found in ran.outputs(variant, name).items():
        truth = ran.truth[output]
        noise = 10 * np.log10(np.sum(truth**2) / max(np.sum((found - truth) ** 2), 1e-30))
        assert noise > (100 if variant == "float" else 25), output


def test_the_record_has_the_preprocessing_of_every_input(ran: Ran) -> None:
    for suffix in (".tflite", ".onnx", ".ptl", ".pte"):
        record = ran.record("float", suffix)
        steps, inputs = record["preprocessing"], record["inputs"]
        assert isinstance(steps, list) and isinstance(inputs, list)
        (image,) = [each for each, spec in zip(steps, inputs, strict=True) if len(spec["shape"]) == 4]
        assert image["mean"] == [0.5, 0.4, 0.3]
        # The raw data has the layout of the source model, whatever that of the file.
        assert ran.report.source is not None
        assert image["layout"] == ("NHWC" if ran.report.source.format == "keras" else "NCHW")
        assert sum(each["scale"] != 1 for each in steps) == 1


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_the_example_of_a_bundle_prepares_every_input(ran: Ran, name: str, tmp_path: Path) -> None:
    assert ran.report.folder is not None
    (row,) = [each for each in ran.report.results if (each.variant, each.format) == ("int8", name)]
    bundle = tmp_path / "bundle"
    contract = make_bundle(ran.report.folder, ran.report, row, bundle, name="doors", version="1.0.0")
    assert contract.schema_version == 2 and len(contract.inputs) == 4
    command = [sys.executable, str(bundle / "example" / "run_model.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 golden vectors" in done.stdout


def test_data_in_the_layout_of_the_source_model_fits_every_file(tmp_path: Path) -> None:
    """A TFLite file made from an NCHW model takes NHWC, which is no concern of the recipe."""
    for name in ("torch", "litert_torch", "onnxruntime", "executorch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"not installed: {name}")
    samples = list(Digits(part="evaluation", limit=100).samples())
    images = np.stack([sample.inputs[0].transpose(2, 0, 1) for sample in samples])
    np.savez(tmp_path / "data.npz", x=images, y=[sample.label for sample in samples])
    changes = (
        "model.preprocess={scale: 1/16}",
        f"data={{evaluation: {{uses: npz, with: {{path: {tmp_path / 'data.npz'}}}}}}}",
        "optimize={}",
        "gates=[]",
        "latency={min_runs: 2, min_seconds: 0}",
    )
    recipe = RECIPES / "digits-torch.yaml"
    report = optimize(recipe, out=tmp_path / "out", store=tmp_path / "store", overrides=changes)
    assert report.source is not None
    expected = report.source.measurements["top1"].value
    assert expected > 0.9 and len(report.results) == len(FORMATS)
    for row in report.results:
        assert row.status == "ok", row.reason
        assert row.measurements["top1"].value == expected
        assert row.measurements["max_abs_error"].value < 1e-4
    # What a recipe knows of its source model also serves files that are measured by themselves.
    plan = make_plan(load_recipe(recipe, overrides=changes))
    alone = profile(
        tmp_path / "out" / "models" / "float.tflite",
        dataset=plan.recipe.evaluation,
        preprocessing=plan.preprocessing,
        metrics=[named for named in plan.recipe.metrics if named.name == "top1"],
        protocol=Latency(min_runs=2, min_seconds=0),
    )
    assert alone.results[0].measurements["top1"].value == expected
