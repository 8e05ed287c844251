"""Every kind of source model goes in at one end and comes out at the other, through the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in_process import Edgeopt

pytestmark = pytest.mark.usefixtures("own_workers")

EDGEOPT = [sys.executable, "-c", "from edgeopt.cli import main; main()"]
MAKE_TORCH = """
import sys, torch
folder = sys.argv[1]
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                          torch.nn.Flatten(), torch.nn.Linear(288, 5))
with torch.no_grad():
    for _ in range(5):
        net(torch.randn(32, 3, 8, 8) * 2 + 1)
net.eval()
x = torch.zeros(1, 3, 8, 8)
torch.export.save(torch.export.export(net, (x,)), folder + "/net.pt2")
torch.jit.trace(net, x).save(folder + "/net.pt")
state = {"module." + name: value for name, value in net.state_dict().items()}
torch.save({"epoch": 3, "state_dict": state}, folder + "/net.pth")
open(folder + "/nets.py", "w").write('''
import torch
def build(classes):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                               torch.nn.Flatten(), torch.nn.Linear(288, classes))
''')
"""
MAKE_TF = """
import sys, os
import tensorflow as tf, keras, tf_keras
folder = sys.argv[1]
keras.utils.set_random_seed(0)
def layers(k):
    return [k.layers.Conv2D(8, 3, activation="relu", name="conv"), k.layers.Flatten(name="flat"),
            k.layers.Dense(5, activation="softmax", name="head")]
keras.Sequential([keras.Input((8, 8, 3), name="image"), *layers(keras)]).save(folder + "/net.keras")
old = tf_keras.Sequential([tf_keras.Input((8, 8, 3), name="image"), *layers(tf_keras)])
old.save(folder + "/net.h5")
old.save(folder + "/functional", save_format="tf")
class Own(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = layers(tf_keras)
    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x
own = Own()
own(tf.zeros((1, 8, 8, 3)))
spec = tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image")
serve = tf.function(lambda image: {"y": own(image)}).get_concrete_function(spec)
tf.saved_model.save(own, folder + "/subclassed", signatures=serve)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    images = np.random.default_rng(0).normal(1, 2, (40, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=images)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(folder)],
            stderr=subprocess.PIPE,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        for code in (MAKE_TORCH, MAKE_TF)
    ]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err.decode()[-2000:]
    return folder


INPUTS = "inputs: [{name: image, shape: [1, 3, 8, 8], layout: NCHW}], "


def optimize(
    edgeopt: Edgeopt, models: Path, out: Path, model: str, formats: str
) -> tuple[int, dict[str, Any], str]:
    (models / f"{out.name}.yaml").write_text(
        f"version: 1\nname: source\nmodel: {{{model}, preprocess: {{layout: NHWC}}}}\n"
        "data:\n  calibration: {uses: npz, with: {path: data.npz, label: null}}\n"
        "  evaluation: {uses: npz, with: {path: data.npz, label: null}}\n"
        "  allow_leak: true\n"
        "optimize: {int8: {quantize: int8}}\nlatency: {min_runs: 5, min_seconds: 0}\n"
        f"formats: [{formats}]\n"
    )
    recipe, store = models / f"{out.name}.yaml", models / "store"
    said = edgeopt("optimize", recipe, "--out", out, "--store", store)
    path = out / "report.json"
    return said.code, json.loads(path.read_text()) if path.exists() else {}, said.err


@pytest.mark.parametrize(
    ("model", "formats"),
    [
        ("factory: 'nets:build', arguments: {classes: 5}, weights: net.pth, " + INPUTS.rstrip(", "), "onnx"),
        ("path: net.pt2", "onnx, torchscript"),
        ("path: net.pt, " + INPUTS.rstrip(", "), "onnx, torchscript"),
        ("path: net.keras", "tflite, torchscript"),
        ("path: net.h5", "onnx, torchscript"),
        ("path: functional", "tflite, torchscript"),
        ("path: subclassed", "tflite, onnx, torchscript, executorch"),  # to PyTorch by way of ONNX
    ],
    ids=["factory", "pt2", "torchscript", "keras", "h5", "functional", "subclassed"],
)
def test_a_source_is_converted_and_quantized(
    edgeopt: Edgeopt, models: Path, tmp_path: Path, model: str, formats: str
) -> None:
    code, report, err = optimize(edgeopt, models, tmp_path, model, formats)
    assert code == 0, err
    assert len(report["results"]) == 2 * len(formats.split(","))
    for row in report["results"]:
        values = row["measurements"]
        assert row["status"] == "ok", row["reason"]
        if row["variant"] == "float":
            assert values["max_abs_error"]["value"] < 1e-4
        else:
            assert values["fidelity_snr_db"]["value"] > 20
            assert values["size_bytes"]["value"] < 20_000


def test_a_store_serves_another_copy_of_the_project(models: Path, tmp_path: Path) -> None:
    """What one copy stored about a module holds no place; that of other code is another's.

    Each runs in a process of its own: a worker that is kept would have the module of the first copy.
    """
    images = np.load(models / "data.npz")["x"]
    code = (models / "nets.py").read_text()
    said, exported = {}, {}
    for index, name in enumerate(("first", "second", "edited")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(models / "net.pth", folder / "net.pth")
        (folder / "nets.py").write_text(code.replace("ReLU", "GELU") if name == "edited" else code)
        np.savez(folder / "data.npz", x=images)
        np.savez(folder / "evaluation.npz", x=images[index:])  # or the store has what the source answers
        (folder / "recipe.yaml").write_text(
            "version: 1\nname: source\nmodel:\n  factory: 'nets:build'\n  arguments: {classes: 5}\n"
            "  weights: net.pth\n  inputs: [{name: image, shape: [1, 3, 8, 8], layout: NCHW}]\n"
            "  preprocess: {layout: NHWC}\n"
            "data:\n  calibration: {uses: npz, with: {path: data.npz, label: null}}\n"
            "  evaluation: {uses: npz, with: {path: evaluation.npz, label: null}}\n  allow_leak: true\n"
            f"optimize: {{small: {{prune: {{weights: {0.1 * (index + 1):.1f}}}}}}}\n"
            "latency: {min_runs: 5, min_seconds: 0}\nformats: [onnx]\n"
        )
        done = subprocess.run(
            [*EDGEOPT, "optimize", "recipe.yaml", "--out", "run", "--store", str(tmp_path / "store")],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said[name] = done.stderr
        report = json.loads((folder / "run" / "report.json").read_text())
        assert report["source"]["status"] == "ok"
        assert all(row["status"] == "ok" for row in report["results"])
        exported[name] = (folder / "run" / "models" / "float.onnx").read_bytes()
        shutil.rmtree(folder)
    assert "cached  small.onnx               load_torch" in said["second"]
    assert "s  small.onnx               prune_torch" in said["second"]
    assert "s  source                   measure on host" in said["second"]
    assert "cached" not in said["edited"]
    assert exported["first"] == exported["second"] != exported["edited"]


@pytest.mark.parametrize(("operator", "status"), [("Relu", "ok"), ("Unheard", "failed")])
def test_a_source_that_is_the_artifact(edgeopt: Edgeopt, tmp_path: Path, operator: str, status: str) -> None:
    """No stage is between an ONNX file and its float artifact, whether or not it runs."""
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    domain = "" if operator == "Relu" else "my.domain"
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calibration.npz", x=np.eye(4, dtype=np.float32), y=np.arange(4))
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: direct\nmodel: {path: net.onnx}\nformats: [onnx]\n"
        "data: {calibration: {uses: npz, with: {path: calibration.npz}}}\n"
        "latency: {min_runs: 5, min_seconds: 0}\n"
    )
    said = edgeopt("optimize", "recipe.yaml", "--out", "out", "--store", "store")
    assert said.code == (0 if status == "ok" else 3), said.err
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    assert row["status"] == status
    assert status == "ok" or "Unheard" in row["reason"]
    kept = tmp_path / "out" / row["artifact"]["path"]
    assert kept.read_bytes() == (tmp_path / "net.onnx").read_bytes()


HEADS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
layers = keras.layers
keras.utils.set_random_seed(0)
image = keras.Input((16, 16, 3))
body = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
boxes = layers.Activation("sigmoid")(layers.Reshape((64, 4))(layers.Conv2D(4, 1)(body)))
scores = layers.Activation("sigmoid")(layers.Reshape((64, 2))(layers.Conv2D(2, 1)(body)))
keras.Model(image, {"zone": boxes, "scores": scores}).save(sys.argv[1] + "/two.keras")
together = layers.Concatenate()([layers.Rescaling(640.0)(boxes), scores])
keras.Model(image, together).save(sys.argv[1] + "/one.keras")
"""


def test_every_output_is_judged_by_its_name(edgeopt: Edgeopt, tmp_path: Path) -> None:
    """Two heads work; with coordinates and scores in one integer tensor, the scores are dead."""
    pytest.importorskip("keras")
    subprocess.run([sys.executable, "-c", HEADS, str(tmp_path)], check=True, capture_output=True)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((40, 16, 16, 3), np.float32))
    reports = {}
    for name, gate, io in (("two", "output: zone", "float32"), ("one", "formats: [tflite]", "int8")):
        (tmp_path / f"{name}.yaml").write_text(
            f"version: 1\nname: {name}\nmodel: {{path: {name}.keras}}\nformats: [tflite]\n"
            "data: {calibration: {uses: npz, with: {path: data.npz, label: null}}}\n"
            f"optimize: {{int8: {{quantize: {{scheme: int8, io: {io}}}}}}}\n"
            "latency: {min_runs: 5, min_seconds: 0}\n"
            f"gates: [{{metric: fidelity_snr_db, min: 20, {gate}}}]\n"
        )
        said = edgeopt("optimize", f"{name}.yaml", "--out", name, "--store", "store")
        assert said.code == (0 if name == "two" else 3), said.err
        reports[name] = json.loads((tmp_path / name / "report.json").read_text())["results"]
    for row in reports["two"]:
        assert row["status"] == "ok" and list(row["outputs"]) == ["scores", "zone"]
        snr = [values["fidelity_snr_db"]["value"] for values in row["outputs"].values()]
        assert row["measurements"]["fidelity_snr_db"]["value"] == min(snr) > 20
        assert [change["name"] for change in row["hops"][-1]["outputs"]] == ["scores", "zone"]
    exact, dead = reports["one"]
    assert (exact["status"], dead["status"]) == ("ok", "failed")
    assert dead["measurements"]["fidelity_snr_db"]["value"] > 40
    assert "part 4 of 6 on axis 2 is 0 everywhere" in dead["reason"]
