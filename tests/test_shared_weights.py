"""Layers that share one weight, such as a filter that is applied at several sampling rates, in ExecuTorch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack
from needs import needs

torch = pytest.importorskip("torch")
needs("executorch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SIGNAL = TensorSpec(name="signal", shape=(1, 1, 256))


class Octaves(torch.nn.Module):
    """The same filters at three sampling rates, and the same head for two of the results."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = torch.nn.Conv1d(1, 256, 48)
        self.lower = torch.nn.Conv1d(1, 1, 5, stride=2, bias=False)
        self.head = torch.nn.Linear(256, 12)

    def forward(self, x: Any) -> Any:
        high = self.filters(x).mean(2)
        middle = self.filters(self.lower(x)).mean(2)
        low = self.filters(self.lower(self.lower(x)[..., :124])).amax(2)
        return self.head(high), self.head(middle), low


class Signals(Dataset):
    """Random signals."""

    seed: int = 1

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(self.seed)
        for _ in range(32):
            yield Sample((random.normal(size=SIGNAL.shape[1:]).astype(np.float32),))

    def digest(self) -> str:
        return "signals"


@pytest.mark.parametrize("int8", [False, True])
def test_every_layer_is_converted_and_the_weight_stored_once(tmp_path: Path, int8: bool) -> None:
    torch.manual_seed(0)
    net = Octaves().eval()
    model = torch_program.save_module(
        net, tmp_path / "m.pt2", Model(format="torch", path=tmp_path), (SIGNAL,)
    )
    for stage in (*((QuantizeXnnpack,) if int8 else ()), ExportedProgramToExecutorch):
        folder = tmp_path / stage.__name__
        folder.mkdir()
        model = stage().run(model, Context(folder, Feed(Signals(), Preprocessing()), lambda _: None))
    run = torch_runtimes.load_executorch(model.path.read_bytes())
    noise, power = np.zeros(3), np.zeros(3)
    for sample in Signals(seed=2).samples():
        x = torch.from_numpy(sample.inputs[0][None])
        with torch.no_grad():
            pairs = zip(net(x), run(x), strict=True)
            for index, (wanted, found) in enumerate(pairs):
                power[index] += float((wanted**2).sum())
                noise[index] += float(((found - wanted) ** 2).sum())
    assert (10 * np.log10(power / noise) > (25 if int8 else 100)).all()
    weights = 256 * 48 + 256 + 5 + 256 * 12 + 12
    assert model.path.stat().st_size < weights * (1 if int8 else 4) + 25_000
