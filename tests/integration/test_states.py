"""Inputs without a batch axis: the state of a streaming model, and a scalar."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.commands.optimize import optimize
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.model import Model, TensorSpec, batched
from edgeopt.plugin import Context
from edgeopt.stages.onnx_to_exported_program import OnnxToExportedProgram
from needs import needs

onnx = pytest.importorskip("onnx")
needs("torch", "torchao", "onnxruntime")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("kept_workers"),
]

UNITS = 8
# Its weights are results of nodes, as some exporters write them, and its state is h and c in one input.
NET = """
net (float[1, 6] x, float[2, N, 8] state, int64 gain) => (float[1, 3] y, float[2, 1, 8] next) {
    first = Constant <value = int64[1] {0}> ()
    w = Identity (w0)
    r = Identity (r0)
    parts = Unsqueeze (x, first)
    h, c = Split <axis = 0> (state)
    s, hn, cn = LSTM <hidden_size = 8> (parts, w, r, b, , h, c)
    next = Concat <axis = 0> (hn, cn)
    last = Squeeze (hn, first)
    p = MatMul (last, v)
    g = Cast <to = 1> (gain)
    y = Mul (p, g)
}
"""


def normal(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("states")
    graph = onnx.parser.parse_graph(NET)
    shapes = {"w0": (1, 32, 6), "r0": (1, 32, UNITS), "b": (1, 64), "v": (UNITS, 3)}
    for index, (name, shape) in enumerate(shapes.items()):
        graph.initializer.append(onnx.numpy_helper.from_array(normal(*shape, seed=index), name))
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), here / "net.onnx")
    for name, seed in (("calibration", 10), ("evaluation", 20)):
        states = normal(64, 2, 1, UNITS, seed=seed + 1)
        gains = np.random.default_rng(seed).integers(1, 4, 64)
        np.savez(here / f"{name}.npz", x=normal(64, 6, seed=seed), state=states, gain=gains)
    return here


def test_a_sample_of_an_input_without_a_batch_axis_is_the_whole_tensor() -> None:
    specs = [TensorSpec(name=str(i), shape=s) for i, s in enumerate([(1, 6), (2, 1, 8), (), (None, 4)])]
    assert [spec.shape for spec in batched(specs)] == [(1, 6), (1, 2, 1, 8), (1,), (None, 4)]
    fixed = [spec.model_copy(update={"shape": (4, 3)}) for spec in specs[:2]]
    assert list(batched(fixed)) == fixed


def test_states_and_scalars_reach_every_file(folder: Path) -> None:
    data = "{{uses: npz, with: {{path: {}.npz, label: null, inputs: {{x: x, state: state, gain: gain}}}}}}"
    (folder / "recipe.yaml").write_text(
        "version: 1\nname: states\nmodel:\n  path: net.onnx\n  inputs:\n"
        "    - {name: x, shape: [1, 6]}\n    - {name: state, shape: [2, 1, 8]}\n"
        "    - {name: gain, shape: [], dtype: int64}\n"
        f"data:\n  calibration: {data.format('calibration')}\n  evaluation: {data.format('evaluation')}\n"
        "optimize: {int8: {quantize: int8}}\nformats: [onnx, torchscript]\n"
        "latency: {min_runs: 2, min_seconds: 0}\n"
    )
    report = optimize(folder / "recipe.yaml", out=folder / "out", store=folder / "store")
    assert len(report.results) == 4
    for row in report.results:
        assert row.status == "ok", row.reason
        least = 90 if row.variant == "float" else 20
        assert row.measurements["fidelity_snr_db"].value > least, (row.variant, row.format)


FACTORY = """
import torch
class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = torch.nn.LSTMCell(6, 8), torch.nn.Linear(8, 3)
    def forward(self, x, state):
        h, c = self.cell(x, (state[0], state[1]))
        return torch.stack([h, c]), self.head(h)
def cell():
    torch.manual_seed(0)
    return Cell()
"""


def test_a_state_of_two_rows_reaches_a_module_in_eager_mode(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cells_of_states.py").write_text(FACTORY)
    data = f"{{uses: npz, with: {{path: {folder / 'evaluation.npz'}, label: null, inputs: [x, state]}}}}"
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: states\nmodel:\n  factory: 'cells_of_states:cell'\n  inputs:\n"
        "    - {name: x, shape: [1, 6]}\n    - {name: state, shape: [2, 1, 8]}\n"
        f"data: {{evaluation: {data}}}\nformats: [onnx]\nlatency: {{min_runs: 2, min_seconds: 0}}\n"
    )
    report = optimize(tmp_path / "recipe.yaml", out=tmp_path / "out", store=tmp_path / "store")
    assert report.source is not None and report.source.status == "ok", report.source
    assert report.run.samples == 64  # not the rows of the first output
    (row,) = report.results
    assert row.status == "ok" and row.measurements["fidelity_snr_db"].value > 100, row.reason


def test_weights_that_nodes_compute_are_constants(folder: Path, tmp_path: Path) -> None:
    shapes: dict[str, Any] = {"x": (1, 6), "state": (2, 1, UNITS), "gain": ()}
    inputs = tuple(
        TensorSpec(name=name, shape=shape, dtype="float32" if shape else "int64")
        for name, shape in shapes.items()
    )
    source = Model(format="onnx", path=folder / "net.onnx", inputs=inputs)
    program = OnnxToExportedProgram().run(source, Context(tmp_path, None, lambda _: None))
    graph, _ = torch_program.plain_graph(program)
    (layer,) = [node for node in graph.graph.nodes if operator_name(node) == "lstm"]
    assert {weight.op for weight in layer.args[2]} == {"get_attr"}
