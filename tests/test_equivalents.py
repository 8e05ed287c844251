"""Operators that few converters know, rewritten in the plain form; and the refusal of those that are left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from needs import needs

torch = pytest.importorskip("torch")
needs("onnx", "onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")

F = torch.nn.functional
INF = float("inf")
CASES: dict[str, Callable[[Any], Any]] = {
    "erfc": torch.erfc,
    "hypot": lambda x: torch.hypot(x, x.flip(1)),
    "clamp": lambda x: x.clamp(-0.5, INF) + x.clamp(-INF, 0.2) + x.clamp(-INF, INF),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 4),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (2, 1)),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x[None], (3, 2, 1)),
    "median": lambda x: x.median(1, keepdim=True)[0].mean() + x.median(2)[0],
    "kthvalue": lambda x: x.kthvalue(2, -1)[0],
    "embedding_bag": lambda x: torch.cat([bag(x, mode) for mode in ("sum", "mean", "max")]),
    "fmax": lambda x: torch.fmax(x, -x) + torch.fmin(x, x.flip(1)),
    "cumprod": lambda x: x.cumprod(1) + (x * 3).cumprod(-1),
    "logcumsumexp": lambda x: (50 * x).logcumsumexp(1),
    "cdist": lambda x: torch.cdist(x, x.flip(1)),
    "_cdist_forward": lambda x: torch.cdist(x, x.flip(2), 1.0) + torch.cdist(x, x + 1, INF),
}


def bag(x: Any, mode: str) -> Any:
    return F.embedding_bag(x.flatten(2).argmax(2), torch.arange(32.0).view(16, 2).sin(), mode=mode)


class Net(torch.nn.Module):
    def __init__(self, compute: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer, self.compute = torch.nn.Conv2d(3, 6, 3, padding=1), compute

    def forward(self, image: Any) -> Any:
        return self.compute(self.layer(image))


def saved(module: Any, folder: Path) -> Model:
    spec = TensorSpec(name="image", shape=(1, 3, 4, 4))
    source = Model(format="torch", path=folder)
    return torch_program.save_module(module.eval(), folder / "model.pt2", source, (spec,))


@pytest.mark.parametrize("name", CASES)
def test_rare_operators_become_common_ones(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Net(CASES[name])
    graph, _ = torch_program.plain_graph(saved(module, tmp_path))
    image = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        assert (graph(image) - module(image)).abs().max() < 1e-5
    if name != "clamp":
        assert name not in map(operator_name, graph.graph.nodes)


def test_what_onnx_lacks_is_named_with_its_layer(tmp_path: Path) -> None:
    program = saved(Net(lambda x: torch.cdist(x, x.flip(1), 3.0)), tmp_path)
    with pytest.raises(
        StageError, match=r"aten.cdist after layer layer cannot be converted to ONNX: No ONNX"
    ):
        ExportedProgramToOnnx().run(program, Context(tmp_path, None, lambda _: None))
