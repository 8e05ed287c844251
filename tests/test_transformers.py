"""Transformers in int8: a few large channels, equalized between layer normalization and linear layers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bare_runtimes import answers, snr_db
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.equalize import Equalize
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.exported_program_to_torchscript import ExportedProgramToTorchscript
from edgeopt.stages.quantize_dynamic_torchscript import QuantizeDynamicTorchscript
from edgeopt.stages.quantize_onnx import QuantizeOnnx
from edgeopt.stages.quantize_tflite import QuantizeTflite
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile
from needs import needs

torch = pytest.importorskip("torch")
needs("torchao", "onnx", "onnxscript", "onnxruntime", "litert_torch", "ai_edge_quantizer")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SIZE, TOKENS = 64, 12


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = torch.nn.LayerNorm(SIZE), torch.nn.LayerNorm(SIZE)
        self.qkv, self.out = torch.nn.Linear(SIZE, 3 * SIZE), torch.nn.Linear(SIZE, SIZE)
        self.up, self.down = torch.nn.Linear(SIZE, 4 * SIZE), torch.nn.Linear(4 * SIZE, SIZE)

    def forward(self, x: Any) -> Any:
        heads = self.qkv(self.before(x)).reshape(1, TOKENS, 3, 4, SIZE // 4).permute(2, 0, 3, 1, 4)
        attended = torch.nn.functional.scaled_dot_product_attention(*heads.unbind(0))
        x = x + self.out(attended.transpose(1, 2).reshape(1, TOKENS, SIZE))
        return x + self.down(torch.nn.functional.gelu(self.up(self.after(x))))


@pytest.fixture(scope="module")
def encoder() -> Any:
    """Two blocks; three channels of each normalization are eight times as large as the others."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(Block(), Block(), torch.nn.LayerNorm(SIZE), torch.nn.Linear(SIZE, 5)).eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.LayerNorm):
                layer.weight.add_(0.2 * torch.randn(SIZE))
                layer.bias.add_(0.1 * torch.randn(SIZE))
                layer.weight[torch.randperm(SIZE)[:3]] *= 8
    return module


def made(stage: Any, model: Model, folder: Path, notes: list[str] | None = None) -> Model:
    folder.mkdir()
    collected = notes if notes is not None else []
    return stage.run(model, Context(folder, None, lambda _: None, note=collected.append))


def test_equalization_of_normalizations_is_exact_and_helps(tmp_path: Path, encoder: Any) -> None:
    spec = TensorSpec(name="tokens", shape=(1, TOKENS, SIZE))
    with torch_engine.one_thread():
        (tmp_path / "source").mkdir()
        source = torch_program.save_module(
            encoder, tmp_path / "source" / "model.pt2", Model(format="torch", path=tmp_path), (spec,)
        )
    notes: list[str] = []
    smooth = made(Equalize(), source, tmp_path / "smooth", notes)
    assert notes == ["5 layer normalizations rescaled with the linear layers that read them"]
    inputs = np.random.default_rng(1).standard_normal((32, TOKENS, SIZE)).astype(np.float32)
    with torch.no_grad(), torch_engine.one_thread():
        expected = np.concatenate([encoder(torch.from_numpy(x[np.newaxis])).numpy() for x in inputs])
    reference = expected.astype(np.float64)

    def snr(model: Model, stage: Any, name: str) -> float:
        script = made(stage, model, tmp_path / f"{name}-script")
        lite = made(TorchscriptToMobile(), script, tmp_path / name)
        return snr_db(answers(lite.path, inputs)[0], reference)

    assert snr(smooth, ExportedProgramToTorchscript(), "float") > 100
    plain = snr(source, QuantizeDynamicTorchscript(), "plain")
    equalized = snr(smooth, QuantizeDynamicTorchscript(), "equalized")
    assert equalized > plain + 4


class Stream(torch.nn.Module):
    """Tokens and a larger one for the class, to which every block adds."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Parameter(8 * torch.randn(1, 1, SIZE))
        self.positions = torch.nn.Parameter(torch.randn(1, TOKENS, SIZE))
        self.blocks = torch.nn.Sequential(Block(), Block(), torch.nn.LayerNorm(SIZE))
        self.embed, self.head = torch.nn.Linear(SIZE, SIZE), torch.nn.Linear(SIZE, 5)

    def forward(self, x: Any) -> Any:
        tokens = torch.cat([self.token, self.embed(x)], 1) + self.positions
        return self.head(self.blocks(tokens)[:, 1:])


class Tokens(Dataset):
    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(3)
        for _ in range(32):
            yield Sample((random.standard_normal((TOKENS - 1, SIZE)).astype(np.float32),))

    def digest(self) -> str:
        return "tokens"


@pytest.mark.parametrize(
    ("convert", "quantize", "suffix"),
    [
        (ExportedProgramToOnnx(), QuantizeOnnx(rounding="nearest"), "onnx"),
        (ExportedProgramToTflite(), QuantizeTflite(), "tflite"),
    ],
    ids=["onnx", "tflite"],
)
def test_residual_streams_stay_in_float(convert: Any, quantize: Any, suffix: str, tmp_path: Path) -> None:
    """In 8 bits, the stream alone costs 7 to 16 dB: its range is that of one token."""
    torch.manual_seed(0)
    module = Stream().eval()
    spec = TensorSpec(name="tokens", shape=(1, TOKENS - 1, SIZE))
    with torch_engine.one_thread():
        source = torch_program.save_module(
            module, tmp_path / "model.pt2", Model(format="torch", path=tmp_path), (spec,)
        )
    exact = made(convert, source, tmp_path / "float")
    notes: list[str] = []
    feed = Feed(Tokens(), Preprocessing())
    (tmp_path / "int8").mkdir()
    context = Context(tmp_path / "int8", feed, lambda _: None, note=notes.append)
    quantized = quantize.run(exact, context)
    assert any("residual sums" in note for note in notes)
    inputs = np.stack([sample.inputs[0] for sample in Tokens().samples()])
    expected, found = (answers(model.path, inputs)[0] for model in (exact, quantized))
    assert snr_db(found, expected.astype(np.float64)) > 26
