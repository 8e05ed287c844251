"""A model with two tasks and a decoder of the user: which brightness a square has, and where it is."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.cli import main
from edgeopt.commands.optimize import optimize
from edgeopt.errors import UsageError
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.publish.bundle import make_bundle, publishable
from edgeopt.publish.contract import read_contract
from edgeopt.results import Report

pytestmark = pytest.mark.usefixtures("kept_workers")

CODE = '''
import os, sys
import numpy as np
import torch

class Squares(torch.nn.Module):
    """The mean of every cell, and from the brightest cell the class."""

    def __init__(self):
        super().__init__()
        self.cells = torch.nn.Conv2d(1, 1, 4, stride=4)
        self.pick = torch.nn.Linear(1, 2)

    def forward(self, x):
        heat = torch.relu(self.cells(x))
        return {"logits": self.pick(torch.amax(heat, (2, 3))), "heat": heat}

def build():
    return Squares()

def save(path):
    model = Squares()
    with torch.no_grad():
        model.cells.weight.fill_(1 / 16); model.cells.bias.zero_()
        model.pick.weight[:] = torch.tensor([[-8.0], [8.0]]); model.pick.bias[:] = torch.tensor([6.0, -6.0])
    torch.save(model.state_dict(), path)

def samples(seed, count=60):
    random = np.random.default_rng(seed)
    for _ in range(count):
        row, column, bright = random.integers(0, 4, 2).tolist() + [int(random.integers(0, 2))]
        image = random.uniform(0, 0.1, (1, 16, 16)).astype(np.float32)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5 + 0.5 * bright
        box = [[4 * column, 4 * row, 4 * column + 4, 4 * row + 4, 0, 0]]
        yield image, {"logits": bright, "boxes+scores+classes": np.array(box, np.float32)}

def decode(outputs, offset=0.0):
    heat = outputs["heat"].reshape(len(outputs["heat"]), 16)
    rows, columns = np.divmod(np.arange(16), 4)
    corners = 4.0 * np.stack([columns, rows, columns + 1, rows + 1], 1) + offset
    boxes = np.broadcast_to(corners, (len(heat), 16, 4))
    return {"logits": outputs["logits"], "boxes": boxes, "scores": heat * (heat > 0.3),
            "classes": np.zeros_like(heat)}

def raises(outputs):
    raise KeyError("no anchors")

def leaves(outputs):
    sys.exit(0)

def other(outputs):
    return {"boxes": np.zeros((1, 2))}
'''

RECIPE = """
version: 1
name: squares
model:
  factory: "squares:build"
  weights: squares.pt
  inputs: [{name: x, shape: [1, 1, 16, 16], layout: NCHW}]
data:
  calibration: {uses: function, with: {function: "squares:samples", arguments: {seed: 0}}}
  evaluation: {uses: function, with: {function: "squares:samples", arguments: {seed: 1}}}
tasks: {logits: classification, boxes+scores+classes: detection}
postprocess: {uses: function, with: {function: "squares:decode"}}
metric: [top1, map50]
optimize:
  int8: {quantize: int8}
  searched: {quantize: {scheme: int8, max_drop: 0.01}}
formats: [tflite, onnx]
gates:
  - {metric: top1, max_drop: 0.02}
  - {metric: map50, max_drop: 0.02}
  - {metric: top1, min: 0.9, class: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    (folder / "squares.py").write_text(CODE)
    (folder / "recipe.yaml").write_text(RECIPE)
    scope: dict[str, Callable[[Path], None]] = {}
    exec(CODE, scope)
    scope["save"](folder / "squares.pt")
    return folder


def run(folder: Path, *overrides: str, name: str = "out") -> Report:
    return optimize(folder / "recipe.yaml", out=folder / name, store=folder / "store", overrides=overrides)


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return run(folder)


def test_each_task_is_scored_on_every_file(report: Report) -> None:
    assert report.source is not None
    assert {name: report.source.measurements[name].value for name in ("top1", "map50")} == {
        "top1": 1,
        "map50": 1,
    }
    assert [(row.variant, row.format, row.status, row.reason) for row in report.results] == [
        (variant, kind, "ok", "") for variant in ("float", "int8", "searched") for kind in ("tflite", "onnx")
    ]
    for row in report.results:
        assert row.measurements["top1"].value >= 0.98 and row.measurements["map50"].value >= 0.98
        assert row.outputs.keys() == {"logits", "heat", "boxes+scores+classes"}
        assert row.outputs["boxes+scores+classes"]["agreement"].value >= 0.98
    assert [verdict.status for verdict in report.gates] == ["pass"] * len(report.gates)


def test_outputs_keep_their_names_in_the_files(folder: Path, report: Report) -> None:
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    names = ["logits", "heat"]
    for variant in ("float", "int8"):
        session = onnxruntime.InferenceSession(folder / f"out/models/{variant}.onnx")
        assert [output.name for output in session.get_outputs()] == names
        signature = read_signature(folder / f"out/models/{variant}.tflite")
        assert [output.name for output in signature.outputs] == names
        runner = Interpreter(str(folder / f"out/models/{variant}.tflite")).get_signature_runner()
        image = np.zeros((1, 16, 16, 1), np.float32)
        assert {name: value.shape for name, value in runner(args_0=image).items()} == {
            "logits": (1, 2),
            "heat": (1, 1, 4, 4),
        }


def test_a_bundle_says_what_the_outputs_mean(tmp_path: Path, folder: Path, report: Report) -> None:
    row = next(row for row in publishable(report) if (row.variant, row.format) == ("int8", "tflite"))
    made = make_bundle(folder / "out", report, row, tmp_path / "bundle", name="squares", version="1.0.0")
    contract = read_contract((tmp_path / "bundle/manifest.json").read_text(), "manifest.json")
    assert contract == made
    assert contract.postprocess is not None
    assert contract.postprocess.model_dump(by_alias=True) == {
        "uses": "function",
        "with": {"function": "squares:decode"},
    }
    assert [(task.uses, task.outputs) for task in contract.tasks] == [
        ("classification", ("logits",)),
        ("detection", ("boxes", "scores", "classes")),
    ]
    card = (tmp_path / "bundle/MODEL_CARD.md").read_text()
    assert "Postprocessing, not part of the file: function (function squares:decode)." in card


def test_the_options_of_the_decoder_reach_the_function(folder: Path, report: Report) -> None:
    moved = run(
        folder, "postprocess.with.arguments={offset: 3}", "optimize={}", "formats=[onnx]", name="moved"
    )
    assert moved.source is not None
    assert moved.source.measurements["map50"].value == 0 and moved.source.measurements["top1"].value == 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "KeyError: 'no anchors'"),
        ("leaves", "it exited its process with exit code 0"),
        ("other", "returned float64 [1, 2] as 'boxes'"),
    ],
)
def test_a_decoder_that_fails_costs_the_metrics_and_not_the_report(
    folder: Path, report: Report, function: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / function
    words = ["--out", out, "--store", folder / "store"]
    for override in (
        f"postprocess.with.function=squares:{function}",
        "optimize={}",
        "formats=[onnx]",
        "gates=[]",
    ):
        words += ["--set", override]
    monkeypatch.setattr(sys, "argv", ["edgeopt", "optimize", str(folder / "recipe.yaml"), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    written = json.loads((out / "report.json").read_text())
    assert ended.value.code == 3
    assert {info["name"]: info["status"] for info in written["metrics"] if info["against"] == "labels"} == {
        "top1": "failed",
        "map50": "failed",
    }
    assert all(reason in info["reason"] for info in written["metrics"] if info["against"] == "labels")
    (row,) = written["results"]
    assert row["status"] == "ok" and row["measurements"]["fidelity_snr_db"]["value"] > 60


def test_labels_of_every_task_are_asked_for(folder: Path) -> None:
    (folder / "renamed.py").write_text(CODE.replace('"boxes+scores+classes": np', '"boxes": np'))
    with pytest.raises(
        UsageError, match="map50 requires labels, and the evaluation data has labels for 'logits'"
    ):
        run(folder, "data.evaluation.with.function=renamed:samples", name="renamed")
