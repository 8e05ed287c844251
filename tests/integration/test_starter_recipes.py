"""``edgeopt init`` on every form of source, three outputs each: its recipe runs once the data are there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgeopt.results import Report
from in_process import Edgeopt
from needs import needs

onnx = pytest.importorskip("onnx")
needs("torch", "keras", "tf_keras", "litert_torch", "executorch")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_workers")]

NETS = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3)
        self.classes, self.kinds, self.place = (torch.nn.Linear(8, size) for size in (5, 3, 4))

    def forward(self, image):
        x = torch.relu(self.stem(image)).mean((2, 3))
        return self.classes(x), self.kinds(x), self.place(x)
"""
TORCH = """
import sys, torch
from nets import Net
torch.manual_seed(0)
net, image = Net().eval(), torch.zeros(1, 3, 8, 8)
torch.save({"state_dict": net.state_dict(), "epoch": 3}, "net.pth")
torch.jit.trace(net, image).save("net.pt")
torch.export.save(torch.export.export(net, (image,)), "net.pt2")
from safetensors.torch import save_file
save_file(net.state_dict(), "net.safetensors")
"""
KERAS = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, tf_keras

def build(k):
    image = k.Input((8, 8, 3), name="image")
    x = k.layers.GlobalAveragePooling2D()(k.layers.Conv2D(8, 3, activation="relu")(image))
    sizes = {"classes": 5, "kinds": 3, "place": 4}
    return k.Model(image, [k.layers.Dense(size, name=name)(x) for name, size in sizes.items()])

build(keras).save("net.keras")
build(tf_keras).save("net.h5")
build(tf_keras).save("saved", save_format="tf")
"""
ONNX = """
net (float[N, 3, 8, 8] image) => (float[N, 5] classes, float[N, 3] kinds, float[N, 4] place) {
    c = Conv (image, w, b)
    r = Relu (c)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    classes = MatMul (f, u)
    kinds = MatMul (f, v)
    place = MatMul (f, p)
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with three outputs in every form; two of them look like scores of classes."""
    made = tmp_path_factory.mktemp("starters")
    (made / "nets.py").write_text(NETS)
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=made, stderr=subprocess.PIPE)
        for code in (TORCH, KERAS)
    ]
    graph, random = onnx.parser.parse_graph(ONNX), np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "u": (8, 5), "v": (8, 3), "p": (8, 4)}
    for name, shape in shapes.items():
        value = random.normal(0, 0.3, shape).astype(np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), made / "net.onnx")
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err.decode()[-2000:]
    return made


SHAPE = ("--shape", "1,3,8,8")
FORMS = {
    "net.keras": ((), "tflite"),
    "net.h5": ((), ""),
    "saved": ((), ""),
    "net.onnx": ((), "onnx"),
    "net.pt2": ((), ""),
    "net.pt": (SHAPE, "torchscript"),
    "net.safetensors": (("--factory", "nets:Net", *SHAPE), ""),
    "net.pth": ((), "torchscript"),
}
"""Options of ``init``, and a format to run: once for each framework, and for each way to know the input.

The others are planned; test_sources.py runs these kinds of sources.
"""


@pytest.mark.parametrize("form", FORMS)
def test_a_recipe_runs_once_the_data_are_filled_in(
    edgeopt: Edgeopt, folder: Path, tmp_path: Path, form: str
) -> None:
    options, target = FORMS[form]
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    said = edgeopt("init", form, *options)
    assert said.code == 0, said.err
    text = (tmp_path / "recipe.yaml").read_text()
    if form == "net.pth":  # without its network, neither inputs nor outputs are known
        for unknown, found in (("my_network:build", "nets:Net"), ("224, 224", "8, 8")):
            assert unknown in text
            text = text.replace(unknown, found)
        (tmp_path / "recipe.yaml").write_text(text)
    else:
        tasks = next(line for line in text.splitlines() if line.startswith("# tasks: "))
        assert list(yaml.safe_load(tasks[2:])["tasks"].values()) == ["classification"] * 3
    recipe = yaml.safe_load(text)
    assert "metric" not in recipe and [gate["metric"] for gate in recipe["gates"]] == ["fidelity_snr_db"]
    shape = (24, 3, 8, 8) if "NCHW" in text else (24, 8, 8, 3)
    for seed, name in enumerate(("calibration", "evaluation")):
        values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=values)
    said = edgeopt("plan", "recipe.yaml", "--json")
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    assert len(plan["branches"]) == 8 and not plan["impossible"]
    if not target:
        return
    short = ("--set", "latency={min_runs: 2, min_seconds: 0}", "--format", target, "--variant", "float")
    said = edgeopt("optimize", "recipe.yaml", "--out", "out", "--store", "store", *short)
    assert said.code == 0, said.out
    (row,) = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes()).results
    assert len(row.outputs) == 3 and row.measurements["fidelity_snr_db"].value > 90
