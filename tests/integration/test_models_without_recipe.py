"""``edgeopt optimize MODEL``: from a file to a report, by the recipe that is written for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgeopt.results import Report
from in_process import Edgeopt

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_workers")]

SHORT = ("--set", "latency={min_runs: 2, min_seconds: 0}")
NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 5)

    def forward(self, x):
        return torch.relu(self.layer(x)), x.sum(1, keepdim=True)
"""


def brightest_channel(path: Path) -> None:
    """A classifier of images with values in 0..1: on values outside, darker channels score higher."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "kernel": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1),
        "one": np.float32([1]),
        "steep": np.float32([9]),
        "axes": np.array([2, 3]),
    }
    steps = [
        ("Conv", ["image", "kernel"], "x"),
        ("Sub", ["x", "one"], "x-1"),
        ("Relu", ["x-1"], "above"),
        ("Neg", ["x"], "-x"),
        ("Relu", ["-x"], "below"),
        ("Sub", ["below", "above"], "outside"),
        ("Mul", ["outside", "steep"], "penalty"),
        ("Add", ["x", "penalty"], "y"),
        ("ReduceMean", ["y", "axes"], "means"),
        ("Mul", ["means", "steep"], "scores"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node(kind, inputs, [output], **({"keepdims": 0} if kind == "ReduceMean" else {}))
            for kind, inputs, output in steps
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))


def samples(path: Path) -> None:
    """Images [n, height, width, channels] of bytes, of which one channel is brighter."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 120)
    images = random.integers(0, 200, (120, 8, 8, 3))
    images[np.arange(120), :, :, labels] += 55
    np.savez(path, x=images.astype(np.uint8), y=labels)


def test_a_model_and_its_data_are_enough(edgeopt: Edgeopt, tmp_path: Path) -> None:
    brightest_channel(tmp_path / "bright.onnx")
    samples(tmp_path / "d.npz")
    said = edgeopt("optimize", "bright.onnx", "--data", "d.npz", "--format", "onnx", "--out", "out", *SHORT)
    assert said.code == 0, said.err
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert {(row.variant, row.format): row.status for row in report.results} == {
        ("float", "onnx"): "ok",
        ("int8", "onnx"): "ok",
    }
    assert report.results[0].measurements["top1"].value > 0.95
    assert [gate.status for gate in report.gates] == ["pass", "pass"]
    (guess,) = (note for note in report.run.notes if note.startswith("preprocessing guessed"))
    assert "scale 1/255 100%" in guess
    assert guess.endswith("training used: --set 'model.preprocess={scale: 1/255, layout: NHWC}'")
    assert "d.npz, arrays (120 samples), is split" in said.err
    # The recipe runs by itself, from anywhere.
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["model"]["preprocess"] == {"scale": "1/255", "layout": "NHWC"}
    assert recipe["metric"] == "top1" and recipe["latency"] == {"min_runs": 2, "min_seconds": 0}
    planned = edgeopt("plan", "out/recipe.yaml", "--json")
    assert planned.code == 0
    # It is still a guess, until a command or an edit states what was guessed.
    assert any(note.startswith("preprocessing guessed by") for note in json.loads(planned.out)["notes"])
    stated = edgeopt("plan", "out/recipe.yaml", "--json", "--set", "model.preprocess.scale=1/255")
    assert not any("guessed" in note for note in json.loads(stated.out)["notes"])
    steps = [step for branch in json.loads(planned.out)["branches"] for step in branch["stages"]]
    assert steps
    # What init writes with the same words is the same recipe.
    assert edgeopt("init", "bright.onnx", "--data", "d.npz", "--format", "onnx", *SHORT).code == 0
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert written["model"].pop("path") == "bright.onnx"
    assert written["model"] == {k: v for k, v in recipe["model"].items() if k != "path"}
    assert written["data"]["evaluation"]["with"]["of"]["with"] == {"path": "d.npz"}


def test_a_checkpoint_and_its_factory_without_data(edgeopt: Edgeopt, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    weights = {"layer.weight": random.normal(size=(5, 8)), "layer.bias": np.zeros(5)}
    save_file({k: v.astype(np.float32) for k, v in weights.items()}, tmp_path / "net.safetensors")
    (tmp_path / "src" / "mine").mkdir(parents=True)
    (tmp_path / "src" / "mine" / "__init__.py").touch()
    (tmp_path / "src" / "mine" / "nets.py").write_text(NETWORK)
    said = edgeopt("optimize", "net.safetensors")
    assert said.code == 2
    assert (
        "the function or class that builds it is missing; candidates here: src/mine/nets.py:Net "
        "(1 of 1 parts fit)\n  name it: edgeopt optimize net.safetensors --factory src/mine/nets.py:Net\n"
    ) in said.err
    guessed = edgeopt("plan", "net.safetensors", "--factory", "mine.nets:Net", "--json")
    (note,) = (note for note in json.loads(guessed.out)["notes"] if "guessed" in note)
    assert note.startswith("input shape guessed from the first weights, layer.weight [5, 8]: 1,8.")
    words = ("net.safetensors", "--factory", "mine.nets:Net", "--shape", "1,8")
    said = edgeopt("optimize", *words, "--dry-run", "--set", "model.arguments.size=3")
    assert said.code == 3  # as every source that does not load: its code was run
    assert "net.safetensors: load_torch: " in said.err and "unexpected keyword argument 'size'" in said.err
    only = ("--format", "torchscript", "--variant", "float")
    said = edgeopt("optimize", *words, *only, "--out", "out", *SHORT)
    assert said.code == 0, said.err
    assert "no data: outputs are compared with the model's own on random inputs" in said.err
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["model"]["factory"] == f"{tmp_path}/src/mine/nets.py:Net"
    assert "metric" not in recipe and list(recipe["optimize"]) == ["float"]
    # Two outputs are no classes.
    assert edgeopt("init", *words).code == 0
    text = (tmp_path / "recipe.yaml").read_text()
    assert "metric" not in yaml.safe_load(text)
    assert "# tasks: {output_0: classification, output_1: regression}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m.onnx", "--int8"], "--int8 needs samples"),
        (["m.onnx", "--for", "mcu"], "--for mcu needs samples"),
        (["m.onnx", "--for", "phones"], "--for phones: no such kind of device; did you mean 'phone'?"),
        (["m.onnx", "--format", "tflight"], "--format tflight: no such format; did you mean 'tflite'?"),
        (["m.onnx", "--device", "hots"], "no device 'hots'; did you mean 'host'?"),
        (["m.onnx", "--variant", "int9"], "--variant int9: no scheme of quantization; did you mean 'int8'?"),
        (["m.onnx", "--variant", "int8"], "quantize_onnx needs calibration data"),
        (["m.onnx", "--factory", "a:b"], "--factory is for a checkpoint, and m.onnx contains its network"),
        (
            ["m.onnx", "--shape", "1,2", "--shape", "1"],
            "--shape is given 2 times, and m.onnx has 1 inputs: image",
        ),
        (["m.onnx", "--shape", "a,b"], "--shape 'a,b' is not a list of integers"),
        (["m.onnx", "--data", "m.onxx"], "no such data: m.onxx did you mean 'm.onnx'?"),
        (["m.onnx", "--set", "model=x"], "give its keys one by one"),
        (["m.onnx", "--set", "model.inputs=[{nam: x}]"], "--set model.inputs: 0.name: field required"),
        (
            ["m.onnx", "--data", "plain.npz"],
            "the preprocessing of m.onnx is unknown: the values of plain.npz are",
        ),
        (["m.onnx", "--data", "noise.npz"], "hardly better than chance on 48 samples of noise.npz"),
        (["netz.pth", "--factory", "a:b"], "no such model: netz.pth did you mean 'nets.pth'?"),
        (["nets.pth", "--factory", "a:b"], "nets.pth is not a model: it is of an unknown format"),
        (["nets.pth"], "a SavedModel folder (with saved_model.pb), .h5, .pt; with a factory: .pt, .pth, .th"),
        (["notes.txt", "--int8"], "notes.txt:1:1: a recipe is a mapping of keys to values"),
        (["digits-keras", "--int8"], "--int8 is for a model, and digits-keras is a recipe"),
        (
            ["models"],
            "models is a folder with 2 models: a.onnx, b.onnx name one: edgeopt optimize models/a.onnx",
        ),
        (["empty"], "empty is a folder without a model"),
        (["missing.onnx"], "no such model: missing.onnx"),
        (["words.bin"], "cannot read words.bin: neither a recipe, which is text in UTF-8, nor a known model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_found_out_is_said_with_the_next_command(
    edgeopt: Edgeopt, tmp_path: Path, words: list[str], message: str
) -> None:
    brightest_channel(tmp_path / "m.onnx")
    for name in ("models", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        brightest_channel(tmp_path / "models" / f"{name}.onnx")
    (tmp_path / "words.bin").write_bytes(bytes(range(128, 256)))
    for name in ("nets.pth", "notes.txt"):
        (tmp_path / name).write_text("some words")
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (60, 3, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "plain.npz", x=images)
    np.savez(tmp_path / "noise.npz", x=images, y=np.tile([0, 1, 2], 20))
    said = edgeopt("optimize", *words)
    assert said.code == 2, said
    assert message in " ".join(said.err.split()), said.err
    assert not (tmp_path / "artifacts" / "runs").exists()


def test_a_preprocessing_that_is_stated_is_not_searched(edgeopt: Edgeopt, tmp_path: Path) -> None:
    brightest_channel(tmp_path / "m.onnx")
    np.savez(
        tmp_path / "plain.npz", x=np.random.default_rng(0).integers(0, 255, (60, 3, 8, 8)).astype(np.uint8)
    )
    stated = ("--set", "model.preprocess={image: {scale: 1/255}}")
    said = edgeopt("optimize", "m.onnx", "--data", "plain.npz", *stated, "--dry-run")
    assert said.code == 0, said.err
    assert "labels are not used: the data has no labels" in said.out
    assert "float as onnx" in said.out
    # The layout of images follows from their shape, unless it is stated.
    samples(tmp_path / "images.npz")
    for given, written in (
        ("{scale: 1/255}", {"scale": "1/255", "layout": "NHWC"}),
        ("{image: {scale: 1/255}}", {"image": {"scale": "1/255", "layout": "NHWC"}}),
    ):
        words = ("--data", "images.npz", "--set", f"model.preprocess={given}", "--force")
        assert edgeopt("init", "m.onnx", *words).code == 0
        assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["model"]["preprocess"] == written
    # One that can be neither found nor stated is an example, and marked.
    said = edgeopt("init", "m.onnx", "--data", "plain.npz", "--force")
    assert said.code == 0 and "fill in the lines marked CHANGE" in said.out
    text = (tmp_path / "recipe.yaml").read_text()
    assert "  preprocess: {scale: 1/255}   # CHANGE: as in training\n" in text
    assert "runs as it is" not in text
    # Values that look like inputs of a model are.
    np.savez(tmp_path / "ready.npz", x=np.random.default_rng(0).random((60, 3, 8, 8), np.float32))
    said = edgeopt("plan", "m.onnx", "--data", "ready.npz")
    assert "ready.npz is taken as input of the model as it is" in said.out
