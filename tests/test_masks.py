"""Attention with a mask, in int8 of every format: the mask is no part of any range."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.formats.masks import masking
from edgeopt.formats.sentinels import are_mixed, reading
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.quantize_fx import QuantizeFx
from edgeopt.stages.quantize_onnx import QuantizeOnnx
from edgeopt.stages.quantize_tflite import QuantizeTflite
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack
from needs import needs

torch = pytest.importorskip("torch")
needs("executorch", "litert_torch", "onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = TensorSpec(name="x", shape=(1, 8, 16))


def test_what_lies_between_a_mask_and_its_softmax_is_found() -> None:
    reads = {"softmax": ["sum"], "sum": ["scores", "mask"], "mask": ["where"], "other": ["product"]}
    found = masking(["softmax", "other"], lambda node: reads.get(node, []), lambda node: node == "where")
    assert found == ["where", "mask", "sum", "softmax"]


def test_what_reads_a_sentinel_is_found_up_to_the_operator_that_drops_it() -> None:
    reads = {"sum": ["conv", "mask"], "shape": ["sum"], "max": ["shape"], "last": ["max"], "conv_2": ["sum"]}
    found = reading(
        ["conv", "mask", *reads],
        lambda node: reads.get(node, []),
        starts=lambda node: node == "sum",
        passes=lambda node: node in ("sum", "shape", "last"),
        computes=lambda node: node.startswith("conv"),
    )
    assert found == ["sum", "shape", "max"]


def test_a_sentinel_is_far_larger_than_the_values_beside_it() -> None:
    assert are_mixed([3.0], [1e3]) and are_mixed([3.0, 1e9], []) and are_mixed([], [0.0, 1e9])
    assert not are_mixed([3.0], [100.0]) and not are_mixed([3e4], [1e-5]) and not are_mixed([], [1.0])


class Attention(torch.nn.Module):
    """Causal attention: the mask is added to the scores, or replaces them; with the largest tokens."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.query, self.key, self.value = (torch.nn.Linear(16, 16) for _ in range(3))
        self.out = torch.nn.Linear(16, 5)
        later = torch.triu(torch.ones(8, 8), 1).bool()
        self.register_buffer("later", later)
        self.register_buffer("added", torch.zeros(8, 8).masked_fill(later, float("-inf")))

    def forward(self, x: Any) -> Any:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
        added = self.how == "added"
        scores = scores + self.added if added else scores.masked_fill(self.later, -1e9)
        present = self.query(x)
        absent = self.later[3, :, None]
        present = present + absent.float() * -1e9 if added else present.masked_fill(absent, -1e4)
        return self.out(scores.softmax(-1) @ self.value(x) + x).mean(1) + self.out(present.amax(1))


class Rows(Dataset):
    count: int = 48

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(3)
        for _ in range(self.count):
            yield Sample((random.normal(0, 1, (8, 16)).astype(np.float32),))

    def digest(self) -> str:
        return "rows"


@pytest.mark.parametrize("how", ["added", "filled"])
def test_masked_attention_is_quantized_in_every_format(how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attention(how).eval()
    source = Model(format="torch", path=tmp_path)
    program = torch_program.save_module(module, tmp_path / "model.pt2", source, (TOKENS,))
    notes: dict[str, list[str]] = {}

    def context(name: str) -> Context:
        (tmp_path / name).mkdir()
        notes[name] = []
        feed = Feed(Rows(), Preprocessing())
        return Context(tmp_path / name, feed, lambda _: None, note=notes[name].append)

    tflite = QuantizeTflite().run(ExportedProgramToTflite().run(program, context("a")), context("tflite"))
    onnx = QuantizeOnnx().run(ExportedProgramToOnnx().run(program, context("b")), context("onnx"))
    script = QuantizeFx().run(program, context("torchscript"))
    xnnpack = QuantizeXnnpack().run(program, context("executorch"))
    executorch = ExportedProgramToExecutorch().run(xnnpack, context("c"))

    samples = [sample.inputs[0][None] for sample in Rows(count=16).samples()]
    with torch.no_grad():
        reference = np.concatenate([module(torch.from_numpy(value)).numpy() for value in samples])
    for name, run in {
        "tflite": lambda: on_tflite(tflite.path, samples),
        "onnx": lambda: on_onnx(onnx.path, samples),
        "torchscript": lambda: on_torchscript(script.path, samples),
        "executorch": lambda: on_executorch(executorch.path, samples),
    }.items():
        noise = ((reference - run()) ** 2).sum()
        assert 10 * np.log10((reference**2).sum() / noise) > 27, name
        assert any("attention masks" in note for note in notes[name]), name
        assert any("numbers of very different sizes" in note for note in notes[name]), name


def on_tflite(path: Path, samples: list[Array]) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    rows = []
    for value in samples:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return np.concatenate(rows)


def on_onnx(path: Path, samples: list[Array]) -> Array:
    from onnxruntime import InferenceSession

    session = InferenceSession(path)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: value})[0] for value in samples])


def on_torchscript(path: Path, samples: list[Array]) -> Array:
    with torch_engine.mobile_engine(), torch.no_grad():
        module = torch.jit.load(path)
        return np.concatenate([module(torch.from_numpy(value)).numpy() for value in samples])


def on_executorch(path: Path, samples: list[Array]) -> Array:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return np.concatenate([np.array(method.execute([torch.from_numpy(value)])[0]) for value in samples])
