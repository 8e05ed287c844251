"""LSTM, GRU and RNN layers in every format: as an operator or a loop, weights stored once, and in int8."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from bare_runtimes import Floats, answers, snr_db
from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import recurrent as torch_recurrent
from edgeopt.formats.torch.graph.operators import WEIGHTED
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample, Stage
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.exported_program_to_torchscript import ExportedProgramToTorchscript
from edgeopt.stages.quantize_dynamic_torchscript import QuantizeDynamicTorchscript
from edgeopt.stages.quantize_fx import QuantizeFx
from edgeopt.stages.quantize_onnx import QuantizeOnnx
from edgeopt.stages.quantize_tflite import QuantizeTflite
from edgeopt.stages.quantize_weights_executorch import QuantizeWeightsExecutorch
from edgeopt.stages.quantize_weights_onnx import QuantizeWeightsOnnx
from edgeopt.stages.quantize_weights_tflite import QuantizeWeightsTflite
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile
from needs import needs

torch = pytest.importorskip("torch")
needs("executorch", "litert_torch", "onnxruntime", "ai_edge_quantizer")
# torch, torchao and ExecuTorch warn about their own deprecations.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS, WIDTH, SIZE = 24, 16, 40
CHAINS: dict[tuple[str, str], Callable[[], list[Stage]]] = {
    ("tflite", "float"): lambda: [ExportedProgramToTflite()],
    ("tflite", "dynamic_int8"): lambda: [
        ExportedProgramToTflite(),
        QuantizeWeightsTflite(scheme="dynamic_int8"),
    ],
    ("tflite", "int8"): lambda: [ExportedProgramToTflite(), QuantizeTflite()],
    ("onnx", "float"): lambda: [ExportedProgramToOnnx()],
    ("onnx", "dynamic_int8"): lambda: [ExportedProgramToOnnx(), QuantizeWeightsOnnx()],
    ("onnx", "int8"): lambda: [ExportedProgramToOnnx(), QuantizeOnnx()],
    ("torchscript", "float"): lambda: [ExportedProgramToTorchscript(), TorchscriptToMobile()],
    ("torchscript", "dynamic_int8"): lambda: [QuantizeDynamicTorchscript(), TorchscriptToMobile()],
    ("torchscript", "int8"): lambda: [QuantizeFx(), TorchscriptToMobile()],
    ("executorch", "float"): lambda: [ExportedProgramToExecutorch()],
    ("executorch", "dynamic_int8"): lambda: [QuantizeWeightsExecutorch(), ExportedProgramToExecutorch()],
    ("executorch", "int8"): lambda: [QuantizeXnnpack(), ExportedProgramToExecutorch()],
}


class Net(torch.nn.Module):
    """An LSTM, then a GRU in both directions; the states of the LSTM are outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(WIDTH, SIZE, batch_first=True)
        self.gru = torch.nn.GRU(SIZE, SIZE, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(2 * SIZE, 5)

    def forward(self, x: Any) -> Any:
        x, (hidden, cell) = self.lstm(x)
        return self.head(self.gru(x)[0]), hidden, cell


class Layers(torch.nn.Module):
    """A stack of recurrent layers whose first states are inputs, and whose last ones are outputs."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layers = getattr(torch.nn, kind)(WIDTH, SIZE, **options)

    def forward(self, x: Any, *states: Any) -> Any:
        first = None if not states else states if len(states) > 1 else states[0]
        x, last = self.layers(x, first)
        return (x, *(last if isinstance(last, tuple) else (last,)))


class Built(NamedTuple):
    path: Path
    notes: list[str]

    @property
    def size(self) -> int:
        return self.path.stat().st_size


class Given(Dataset):
    """Samples from memory."""

    values: Any = ()

    def samples(self) -> Iterator[Sample]:
        for value in self.values:
            yield Sample(value if isinstance(value, tuple) else (value,))

    def digest(self) -> str:
        return "given"


def exported(module: Any, folder: Path, *shapes: Sequence[int]) -> Model:
    folder.mkdir(parents=True)
    names = ("steps", "hidden", "cell")
    specs = tuple(
        TensorSpec(name=name, shape=tuple(shape)) for name, shape in zip(names, shapes, strict=False)
    )
    with torch_engine.one_thread():
        source = Model(format="torch", path=folder)
        return torch_program.save_module(module.eval(), folder / "model.pt2", source, specs)


def made(
    stages: Sequence[Stage], model: Model, folder: Path, notes: list[str] | None = None, values: Any = None
) -> Model:
    """The result of a chain of stages; ``values`` are the calibration samples."""
    feed = Feed(Given(values=samples(16) if values is None else values), Preprocessing())
    for number, stage in enumerate(stages):
        step = folder / str(number)
        step.mkdir(parents=True)
        note = (notes if notes is not None else []).append
        model = stage.run(model, Context(step, feed, lambda _: None, note=note))
    return model


def samples(count: int) -> Any:
    """``[count, STEPS, WIDTH]``."""
    return np.random.default_rng(3).standard_normal((count, STEPS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def program(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return exported(net, tmp_path_factory.mktemp("recurrent") / "net", (1, STEPS, WIDTH))


@pytest.fixture(scope="module")
def files(program: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Built]:
    """The file of a format and variant, built once."""
    folder = tmp_path_factory.mktemp("files")
    known: dict[tuple[str, str], Built] = {}

    def get(format_name: str, variant: str) -> Built:
        cell = (format_name, variant)
        if cell not in known:
            notes: list[str] = []
            known[cell] = Built(made(CHAINS[cell](), program, folder / "_".join(cell), notes).path, notes)
        return known[cell]

    return get


def source_outputs(module: Any, inputs: Any) -> list[Floats]:
    with torch.no_grad(), torch_engine.one_thread():
        found = [[part.numpy() for part in module(torch.from_numpy(each[np.newaxis]))] for each in inputs]
    return [np.concatenate(each).astype(np.float64) for each in zip(*found, strict=True)]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_loops_equal_the_layers(kind: str) -> None:
    torch.manual_seed(1)
    for layers, both, first, bias in ((2, True, False, True), (2, False, True, False), (1, True, True, True)):
        module = Layers(kind, num_layers=layers, bidirectional=both, batch_first=first, bias=bias).eval()
        shape = (1, 7, WIDTH) if first else (7, 1, WIDTH)
        count = 2 if kind == "LSTM" else 1
        inputs = [torch.randn(shape), *(torch.randn(layers * (1 + both), 1, SIZE) for _ in range(count))]
        plain = torch.export.export(module, tuple(inputs)).run_decompositions({})
        graph = torch_recurrent.with_loops(_flat(plain.module(check_guards=False), inputs))
        loops = [node for node in graph.graph.nodes if str(node.target) == torch_recurrent.STEP_LOOP]
        assert len(loops) == layers * (1 + both)
        with torch.no_grad():
            for found, expected in zip(graph(*inputs), module(*inputs), strict=True):
                assert (found - expected).abs().max() < 1e-6
            torch_recurrent.to_scans(graph)
            for found, expected in zip(graph(*inputs), module(*inputs), strict=True):
                assert (found - expected).abs().max() < 1e-6


def _flat(module: Any, inputs: Sequence[Any]) -> Any:
    from edgeopt.formats.torch.graph import simplify

    return simplify.simplify(module, inputs)


FLOORS = {"float": 110.0, "dynamic_int8": 38.0, "int8": 30.0}
"""Smallest SNR of each output in dB: int8 recurrent weights of these nets leave 42 to 50 dB."""


@pytest.mark.parametrize(("format_name", "variant"), CHAINS)
def test_every_output_of_every_file(
    net: Any, files: Callable[[str, str], Built], format_name: str, variant: str
) -> None:
    result = files(format_name, variant)
    inputs = samples(6)
    expected = source_outputs(net, inputs)
    found = answers(result.path, inputs)
    assert [part.shape for part in found] == [part.shape for part in expected]
    for part, reference in zip(found, expected, strict=True):
        assert snr_db(part, reference) > FLOORS[variant]
    weights = sum(parameter.numel() for parameter in net.parameters())
    # Every weight is stored once; files in int8 also have scales, and floats that convert to them.
    assert result.size < (weights * 4 + 32_000 if variant == "float" else weights + 45_000)
    if variant == "float":
        assert result.size < 1.03 * files("onnx", "float").size + 32_000


def test_tflite_has_the_loop_once(tmp_path: Path, files: Callable[[str, str], Built], net: Any) -> None:
    file = load(files("tflite", "float").path)
    kinds = [[operation.kind for operation in graph.operations] for graph in graphs_of(file)]
    assert kinds[0].count("WHILE") == 3
    assert len(kinds) == 1 + 2 * 3
    # Of a stack with 10 times the steps, the file has the same operators.
    longer = exported(net, tmp_path / "longer", (1, 10 * STEPS, WIDTH))
    result = made([ExportedProgramToTflite()], longer, tmp_path / "tflite")
    assert [[at.kind for at in graph.operations] for graph in graphs_of(load(result.path))] == kinds
    assert math.isclose(result.path.stat().st_size, files("tflite", "float").size, rel_tol=0.02)


def test_executorch_has_the_loop_once(tmp_path: Path, files: Callable[[str, str], Built]) -> None:
    longer = exported(Net(), tmp_path / "longer", (1, 10 * STEPS, WIDTH))
    size = made(CHAINS["executorch", "float"](), longer, tmp_path / "made").path.stat().st_size
    assert math.isclose(size, files("executorch", "float").size, rel_tol=0.02)


def test_no_state_survives_a_call(files: Callable[[str, str], Built]) -> None:
    """A runtime calls the same file again and again: each answer depends on its own input alone."""
    first, second = samples(2)
    for format_name in ("tflite", "executorch"):
        path = files(format_name, "float").path
        once = answers(path, np.stack([second]))
        later = answers(path, np.stack([first, second]))
        for alone, after in zip(once, later, strict=True):
            assert np.array_equal(alone[0], after[1])


def test_first_states_are_inputs(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    torch.manual_seed(2)
    module = Layers("LSTM", num_layers=2)
    shapes = (STEPS, 1, WIDTH), (2, 1, SIZE), (2, 1, SIZE)
    result = made([ExportedProgramToTflite()], exported(module, tmp_path / "net", *shapes), tmp_path / "made")
    inputs = [torch.randn(shape) for shape in shapes]
    signature = Interpreter(str(result.path), num_threads=1).get_signature_runner()
    names = [spec.name for spec in result.inputs]
    found = signature(**{name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    with torch.no_grad():
        expected = [part.numpy().astype(np.float64) for part in module(*inputs)]
    for spec, reference in zip(result.outputs, expected, strict=True):
        assert snr_db(found[spec.name], reference) > 110


def test_a_stream_keeps_its_state_in_int8_tflite(tmp_path: Path) -> None:
    """One step a call, with the state of the last call as an input: both outputs, after each step."""
    from ai_edge_litert.interpreter import Interpreter

    torch.manual_seed(2)
    module = Layers("GRU", batch_first=True)
    program = exported(module, tmp_path / "net", (1, 1, WIDTH), (1, 1, SIZE))
    steps, state = samples(2), torch.zeros(1, 1, SIZE)
    given, expected = [], []
    with torch.no_grad():
        for step in steps.reshape(-1, 1, WIDTH):
            given.append((step, state[0].numpy()))
            found, state = module(torch.from_numpy(step[np.newaxis]), state)
            expected.append((found.numpy(), state.numpy()))
    result = made(CHAINS["tflite", "int8"](), program, tmp_path / "made", values=given[:STEPS])
    call = Interpreter(str(result.path), num_threads=1).get_signature_runner()
    names, outputs = ([spec.name for spec in specs] for specs in (result.inputs, result.outputs))
    kept, answered = np.zeros((1, 1, SIZE), np.float32), []
    for step, _ in given:
        answer = call(**dict(zip(names, (step[np.newaxis], kept), strict=True)))
        answered.append(tuple(answer[name] for name in outputs))
        kept = answered[-1][1]
    for found, reference in zip(zip(*answered, strict=True), zip(*expected, strict=True), strict=True):
        decibels = snr_db(np.stack(found).astype(np.float64), np.stack(reference).astype(np.float64))
        assert 30 < decibels < 60  # float: more than 110


class OneState(torch.nn.Module):
    """Both states of an LSTM are one input and one output, as in detectors of speech."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LSTM(WIDTH, SIZE)

    def forward(self, x: Any, states: Any) -> Any:
        y, found = self.layer(x, (states[:1], states[1:]))
        return y, torch.cat(found)


def test_states_may_be_parts_of_one_input(tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    torch.manual_seed(2)
    shapes = (1, 1, WIDTH), (2, 1, SIZE)
    module = OneState()
    program = exported(module, tmp_path / "net", *shapes)
    result = made([ExportedProgramToExecutorch()], program, tmp_path / "made")
    inputs = [torch.randn(shape) for shape in shapes]
    found = Runtime.get().load_program(result.path.read_bytes()).load_method("forward").execute(inputs)
    with torch.no_grad():
        for output, expected in zip(found, module(*inputs), strict=True):
            assert snr_db(output.double().numpy(), expected.double().numpy()) > 110


def test_one_name_means_the_layer_in_every_format(
    tmp_path: Path, program: Model, files: Callable[[str, str], Built]
) -> None:
    """``gru`` is one name for all its parts: one variant, four formats."""
    weights = 2 * 3 * SIZE * 2 * SIZE
    for format_name in ("tflite", "onnx", "torchscript"):
        stages = CHAINS[format_name, "dynamic_int8"]()
        index = next(i for i, stage in enumerate(stages) if hasattr(stage, "layers"))
        stages[index] = stages[index].model_copy(update={"layers": {"gru": "float32"}})
        result = made(stages, program, tmp_path / format_name)
        growth = result.path.stat().st_size - files(format_name, "dynamic_int8").size
        assert 2.6 * weights < growth < 3.1 * weights
    graph = torch_recurrent.with_loops(torch_program.plain_graph(program)[0])
    layers = torch_overrides.quantizable(graph, WEIGHTED | torch_recurrent.RECURRENT)
    meant = torch_overrides.precisions(layers, {"gru": "float32"})
    parts = [f"gru/{part}_l0{suffix}" for suffix in ("", "_reverse") for part in ("input", "hidden")]
    assert list(meant) == parts


NOTES = {
    "tflite": "layers in loops have int8 weights, and quantize their input at run time",
    "onnx": "recurrent layers have int8 weights, which are dequantized on every inference",
    "torchscript": "recurrent layers have int8 weights; their inputs and states are quantized at run time",
    "executorch": "recurrent layers run as loops: the product with the inputs is int8",
}


@pytest.mark.parametrize("format_name", NOTES)
def test_what_int8_computes_in_float_is_noted(files: Callable[[str, str], Built], format_name: str) -> None:
    notes = files(format_name, "int8").notes
    assert sum(NOTES[format_name] in note for note in notes) == 1, notes
    assert not any("recurrent layers" in note for note in files(format_name, "float").notes)


def test_four_bits_in_a_loop_are_refused_by_name(
    tmp_path: Path, files: Callable[[str, str], Built], program: Model
) -> None:
    source = Model(format="tflite", path=files("tflite", "float").path)
    with pytest.raises(StageError, match=r"gru/hidden_l0 is in a loop .* cannot be int4") as caught:
        made([QuantizeTflite(layers={"gru/hidden_l0": "int4"})], source, tmp_path / "int4")
    assert "'gru/hidden_l0': int8" in caught.value.fix
