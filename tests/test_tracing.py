"""What depends on values: rewritten where that is exact, else refused with the line of the user's code."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph.graph_editor import LINE
from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.torchscript_to_exported_program import TorchscriptToExportedProgram
from needs import needs

torch = pytest.importorskip("torch")
needs("litert_torch", "onnxruntime", "executorch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NETS = """
import numpy as np
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.extra = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.middle(self.conv(x))


class Branch(Base):
    def middle(self, y):
        if y.sum() > 0:  # line 20
            return y * 2
        return y


class Number(Base):
    def middle(self, y):
        return y * float(y.mean())


class Size(Base):
    def middle(self, y):
        return y[:, :, : int(y.abs().mean().item() * 3) + 1]


class Numpy(Base):
    def middle(self, y):
        return y * torch.from_numpy(np.tanh(y.detach().numpy()))


class Loop(Base):
    def middle(self, y):
        while y.abs().max() > 1:
            y = y / 2
        return y


class Check(Base):
    def middle(self, y):
        assert torch.isfinite(y).all()
        return y


class Index(Base):
    def middle(self, y):
        return y + y[y > 0].mean()


class Single(Base):
    def middle(self, y):
        low, high = y.min().item(), y.max().item()
        return (y - low) / (high - low + 0.5) * y.mean().item()


class Mask(Base):
    def middle(self, y):
        y = y.clone()
        y[y > 0] = 0.25
        y[y.mean((2, 3)) > 0] = -1.0
        return y


class Cond(Base):
    def middle(self, y):
        def yes(z, s):
            return self.extra(z), s * 2

        def no(z, s):
            return torch.cond(s.sum() > 5, lambda q: q.relu(), lambda q: q - 1, (z,)), s + 1

        a, b = torch.cond(y.mean() > 0, yes, no, (y, y.sum(1, keepdim=True)))
        return a + b


class Grid(Base):
    def middle(self, y):
        height, width = y.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return y + columns.float() * 0.1 + rows


class Place(Base):
    def forward(self, x):
        y = self.conv(x)
        (rows,) = torch.where(y[0, 0, :, 0] > 0)
        return y[:, :, rows]


library = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):  # torchvision itself has it for images on processors
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", lambda boxes, scores, threshold: scores.argsort()[:5], "CPU")

    @torch.library.register_fake("torchvision::nms", lib=library)
    def _(boxes, scores, threshold):
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


class Suppressed(Base):
    def forward(self, x):
        y = self.conv(x)
        boxes = y.flatten(2)[0].T
        kept = torch.ops.torchvision.nms(boxes, boxes[:, 0], 0.5)
        return y, boxes[kept]


class Best(Base):
    def forward(self, x):
        y = self.conv(x)
        boxes = y.flatten(2)[0].T
        kept = torch.ops.torchvision.nms(boxes, boxes[:, 0], 0.5)
        return boxes[kept][:1].sum(0)


class All(Base):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Single(), Mask(), Cond(), Grid()])

    def middle(self, y):
        return sum(part.middle(y) for part in self.parts)
"""
SPEC = TensorSpec(name="x", shape=(1, 3, 8, 8), layout="NCHW")
SOURCE = Model(format="torch", path=Path())
Export = Callable[[str], tuple[Model, Any, list[str]]]


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "own_value_nets.py").write_text(NETS)
    sys.path.insert(0, str(folder))
    try:
        import own_value_nets
    finally:
        sys.path.remove(str(folder))
    return own_value_nets


@pytest.fixture(scope="module")
def exported(nets: Any, tmp_path_factory: pytest.TempPathFactory) -> Export:
    def export(name: str) -> tuple[Model, Any, list[str]]:
        torch.manual_seed(0)
        net, notes = getattr(nets, name)().eval(), list[str]()
        path = tmp_path_factory.mktemp(name) / "model.pt2"
        return torch_program.save_module(net, path, SOURCE, (SPEC,), note=notes.append), net, notes

    return export


def samples() -> Any:
    random = torch.Generator().manual_seed(3)
    return [torch.randn(1, 3, 8, 8, generator=random) + shift for shift in (-1.0, 0.0, 1.0, 2.0)]


def snr(expected: Any, actual: Any) -> float:
    noise = float(np.square(np.asarray(expected, np.float64) - np.asarray(actual)).sum())
    return float(10 * np.log10(np.square(np.asarray(expected, np.float64)).sum() / max(noise, 1e-30)))


def context(folder: Path) -> Context:
    return Context(folder, None, lambda line: None)


REFUSED = {
    "Branch": ("line 19, in middle: if y.sum() > 0:", "torch.cond"),
    "Number": ("in middle: return y * float(y.mean())", "without .item(), int() or float()"),
    "Size": ("in middle: return y[:, :, : int(y.abs()", "use a fixed number"),
    "Numpy": ("in middle: return y * torch.from_numpy(", "functions of torch in the place of NumPy's"),
    "Loop": ("in middle: while y.abs().max() > 1:", "torch.where(condition, a, b)"),
    "Check": ("in middle: assert torch.isfinite(y).all()", "is_exporting()"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_values_is_refused_with_its_line_and_a_way_out(exported: Export, name: str) -> None:
    where, way_out = REFUSED[name]
    with pytest.raises(StageError) as caught:
        exported(name)
    assert "torch.export cannot trace own_value_nets.py, " in caught.value.message
    assert where in caught.value.message and way_out in caught.value.fix
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("name", "output", "line", "way_out"),
    [
        ("Suppressed", "output_1", "kept = torch.ops.torchvision.nms(boxes, ", "'postprocess' in the recipe"),
        ("Place", "output", "(rows,) = torch.where(y[0, 0, :, 0] > 0)", "torch.where(condition, a, b)"),
    ],
)
def test_an_output_of_variable_size_is_refused_with_its_line_and_a_way_out(
    exported: Export, name: str, output: str, line: str, way_out: str
) -> None:
    with pytest.raises(StageError, match=f"the size of output '{output}' depends on the data") as caught:
        exported(name)
    assert "own_value_nets.py, line " in caught.value.message and line in caught.value.message
    assert way_out in caught.value.fix


def test_suppression_inside_a_model_is_named_with_its_layer(exported: Export, tmp_path: Path) -> None:
    program, _, (note,) = exported("Best")
    assert "own_value_nets.py, line " in note and "'postprocess' in the recipe" in note
    for stage, message in (
        (ExportedProgramToTflite(), "torchvision.nms.* after layer conv cannot be converted to TFLite"),
        (ExportedProgramToExecutorch(), r"nms \(after layer conv\)"),
    ):
        with pytest.raises(StageError, match=message):
            stage.run(program, context(tmp_path))


@pytest.mark.parametrize("name", ["Single", "Mask", "Cond", "Grid"])
def test_what_has_an_equal_of_fixed_shape_is_rewritten(exported: Export, name: str) -> None:
    program, net, notes = exported(name)
    graph = torch.export.load(program.path).module()
    with torch.no_grad():
        assert min(snr(net(x), graph(x)) for x in samples()) > 110
    assert notes == []
    left = {operator_name(node) for node in torch.export.load(program.path).graph.nodes}
    assert not left & {"item", "_local_scalar_dense", "index_put", "cond", "nonzero"}


def test_the_rewritten_operators_reach_tflite_and_onnx(exported: Export, tmp_path: Path) -> None:
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    program, net, _ = exported("All")
    (tmp_path / "t").mkdir()
    tflite = ExportedProgramToTflite().run(program, context(tmp_path / "t")).path
    session = onnxruntime.InferenceSession(ExportedProgramToOnnx().run(program, context(tmp_path)).path)
    interpreter = Interpreter(str(tflite))
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    for x in samples():
        with torch.no_grad():
            expected = net(x).numpy()
        image = x.numpy() if tuple(entry["shape"]) == (1, 3, 8, 8) else x.permute(0, 2, 3, 1).numpy()
        interpreter.set_tensor(entry["index"], image)
        interpreter.invoke()
        assert snr(expected, interpreter.get_tensor(result["index"])) > 100
        assert snr(expected, session.run(None, {"x": x.numpy()})[0]) > 100


def test_results_of_variable_size_are_named_in_a_note(exported: Export) -> None:
    program, net, (note,) = exported("Index")
    assert "own_value_nets.py, line " in note and "torch.where(condition, a, b)" in note
    x = samples()[2]
    assert snr(net(x).detach(), torch.export.load(program.path).module()(x).detach()) > 110


@pytest.mark.parametrize("name", ["Branch", "Loop", "Index"])
def test_torchscript_is_refused_with_the_line_of_its_source(nets: Any, tmp_path: Path, name: str) -> None:
    torch.jit.script(getattr(nets, name)().eval()).save(tmp_path / "m.pt")
    source = Model(format="torchscript_module", path=tmp_path / "m.pt", inputs=(SPEC,))
    with pytest.raises(StageError, match=r"m\.pt cannot be traced: .*own_value_nets\.py, line ") as caught:
        TorchscriptToExportedProgram().run(source, context(tmp_path))
    assert "torch.where(condition, a, b)" in caught.value.fix
    assert len(str(caught.value).splitlines()) <= 3


def test_torchscript_of_other_inputs_is_refused_with_the_reason(nets: Any, tmp_path: Path) -> None:
    torch.jit.script(nets.Grid().eval()).save(tmp_path / "m.pt")
    four = TensorSpec(name="x", shape=(1, 4, 8, 8))
    source = Model(format="torchscript_module", path=tmp_path / "m.pt", inputs=(four,))
    with pytest.raises(StageError, match=r"expected input\[1, 4, 8, 8\] to have 3 channels"):
        TorchscriptToExportedProgram().run(source, context(tmp_path))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 3, 12, 16)])
def test_free_axes_of_an_exported_program_are_fixed_by_the_inputs(
    nets: Any, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    free = {"x": {2: torch.export.Dim("h", min=4, max=64), 3: torch.export.Dim("w", min=4, max=64)}}
    net, example = nets.Grid().eval(), torch.zeros(1, 3, 8, 8)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=free), tmp_path / "m.pt2")
    spec = TensorSpec(name="x", shape=shape)
    source = Model(format="exported_program", path=tmp_path / "m.pt2", inputs=(spec,))
    graph, _ = torch_program.plain_graph(source)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert snr(net(x).detach(), graph(x).detach()) > 110
    assert not [node for node in graph.graph.nodes if "sym_size" in str(node.target)]


LINES = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return torch.hypot(y, y * 2)
"""


def test_a_program_quotes_the_lines_of_the_code_and_not_where_they_are(tmp_path: Path) -> None:
    """A comment, or another folder, changes neither the file nor what is built from it."""
    contents = []
    for name, text in (("one", LINES), ("two", "# A comment.\n" + LINES)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "quoted_net.py").write_text(text)
        found = importlib.util.spec_from_file_location("quoted_net", folder / "quoted_net.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        torch.manual_seed(0)
        source = Model(format="torch", path=folder)
        made = torch_program.save_module(module.Net().eval(), folder / "model.pt2", source, (SPEC,))
        contents.append(made.path.read_bytes())
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]
    graph, _ = torch_program.plain_graph(made)
    lines = {operator_name(node): node.meta.get(LINE) for node in graph.graph.nodes if operator_name(node)}
    layer, composed = "y = self.norm(self.conv(x))", "return torch.hypot(y, y * 2)"
    assert lines.pop("conv2d") == f"quoted_net.py, in forward: {layer}"
    assert "sqrt" in lines and set(lines.values()) == {f"quoted_net.py, in forward: {composed}"}


def test_the_lines_of_a_program_from_elsewhere_are_those_in_the_program(nets: Any, tmp_path: Path) -> None:
    program = torch.export.export(nets.Grid().eval(), (torch.zeros(SPEC.shape),))
    (tmp_path / "theirs.py").write_text("SECRET = 1\n")
    for node in program.graph.nodes:
        node.meta["stack_trace"] = f'File "{tmp_path}/theirs.py", line 1, in forward\n    return made(x)'
    torch.export.save(program, tmp_path / "m.pt2")
    graph, _ = torch_program.plain_graph(Model(format="exported_program", path=tmp_path / "m.pt2"))
    lines = {node.meta.get(LINE) for node in graph.graph.nodes if operator_name(node)}
    assert lines == {"theirs.py, in forward: return made(x)"}


def test_other_free_axes_than_the_batch_are_fixed_by_the_recipe(nets: Any, tmp_path: Path) -> None:
    free = TensorSpec(name="x", shape=(None, 3, None, None))
    torch.jit.script(nets.Grid().eval()).save(tmp_path / "m.pt")
    source = Model(format="torchscript_module", path=tmp_path / "m.pt", inputs=(free,))
    with pytest.raises(StageError, match="only the batch axis may be free") as caught:
        TorchscriptToExportedProgram().run(source, context(tmp_path))
    assert caught.value.fix == (
        "state its size in the recipe, in model.inputs, such as {name: x, shape: [1, 3, 96, 96]}; "
        "for several sizes, run the recipe once for each: --set 'model.inputs=[...]'"
    )
