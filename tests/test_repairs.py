"""Repairs of the float model before quantization: each restores a deliberately hostile model."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rescaled_networks as networks
from edgeopt.errors import StageError
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import chains as torch_chains
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import layer_by_layer as torch_layer_by_layer
from edgeopt.formats.torch.quantize import grid as torch_grid
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample, Stage
from edgeopt.stages.correct_bias import CorrectBias
from edgeopt.stages.equalize import Equalize
from edgeopt.stages.exported_program_to_onnx import ExportedProgramToOnnx
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.quantize_onnx import QuantizeOnnx
from edgeopt.stages.quantize_tflite import QuantizeTflite
from edgeopt.stages.round_weights import RoundWeights

torch = pytest.importorskip("torch")
for needed in ("litert_torch", "ai_edge_quantizer", "sklearn"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")

DIGITS = Preprocessing(scale=1 / 16, layout="NHWC")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Batches of 1 consist of many tiny operators, for which threads only wait for each other."""
    with torch_engine.one_thread():
        yield


class Noise(Dataset):
    """Random values, generated one by one."""

    count: int = 32
    shape: tuple[int, ...] = (3, 8, 8)
    broken: bool = False
    size: float = 1.0

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(5)
        for _ in range(self.count):
            values = self.size * random.standard_normal(self.shape).astype(np.float32)
            yield Sample((values * np.float32("nan") if self.broken else values,))

    def digest(self) -> str:
        return "noise"


NEAREST = QuantizeOnnx(rounding="nearest", weight_type="uint8")
"""The plain form: its own scales against overflow, and its own rounding, would hide what is repaired."""


class Notes(list[str]):
    """Notes of a stage in the report."""

    def context(self, folder: Path, feed: Feed | None) -> Context:
        folder.mkdir(parents=True)
        return Context(folder, feed, lambda line: None, note=self.append)


def calibration(limit: int | None = None) -> Feed:
    return Feed(Digits(part="calibration", limit=limit), DIGITS)


def repaired(stage: Stage, model: Model, folder: Path, feed: Feed | None = None) -> Model:
    return stage.run(model, Notes().context(folder, feed or calibration()))


def evaluation(model: Model, limit: int = 500) -> tuple[list[Array], Array]:
    feed = Feed(Digits(part="evaluation"), DIGITS)
    samples = list(islice(feed.samples(model), limit))
    return [sample.inputs[0] for sample in samples], np.array([sample.label for sample in samples])


def outputs(model: Model, inputs: list[Array]) -> Array:
    """Outputs of a model in the runtime of its format."""
    if model.format == "tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter: Any = Interpreter(model_path=str(model.path), num_threads=1)
        interpreter.allocate_tensors()
        (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

        def ask(value: Array) -> Array:
            interpreter.set_tensor(taken["index"], value)
            interpreter.invoke()
            return interpreter.get_tensor(given["index"]).copy()
    elif model.format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def ask(value: Array) -> Array:
            return session.run(None, {name: value})[0]
    else:
        graph, _ = torch_program.plain_graph(model)

        def ask(value: Array) -> Array:
            with torch.no_grad():
                return graph(torch.from_numpy(value)).numpy()

    return np.concatenate([ask(value) for value in inputs])


def snr_db(expected: Array, found: Array) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def int8_tflite(model: Model, folder: Path, feed: Feed | None = None) -> Model:
    """One scale per tensor instead of per channel, as required by some accelerators."""
    converted = repaired(ExportedProgramToTflite(), model, folder / "float", feed)
    return repaired(QuantizeTflite(per_channel=False), converted, folder / "int8", feed)


def int8_onnx(model: Model, folder: Path, feed: Feed | None = None) -> Model:
    converted = repaired(ExportedProgramToOnnx(), model, folder / "float", feed)
    return repaired(NEAREST.model_copy(update={"per_channel": False}), converted, folder / "int8", feed)


Digit = tuple[Model, Model, Model]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digit:
    """The trained digits network: original, hostile, and equalized."""
    folder = tmp_path_factory.mktemp("digits")
    trained = networks.exported(networks.DIGITS, folder / "trained")
    bad = networks.exported(networks.DIGITS, folder / "hostile", factor=100)
    return trained, bad, repaired(Equalize(), bad, folder / "equalized")


def test_hostile_model_computes_the_same(digits: Digit) -> None:
    trained, bad, _ = digits
    inputs, _ = evaluation(trained, 50)
    before, after = outputs(trained, inputs), outputs(bad, inputs)
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


def test_equalizing_keeps_the_outputs_and_says_what_it_did(tmp_path: Path, digits: Digit) -> None:
    _, bad, equalized = digits
    inputs, _ = evaluation(bad, 50)
    before, after = outputs(bad, inputs), outputs(equalized, inputs)
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()
    notes = Notes()
    Equalize().run(bad, notes.context(tmp_path / "again", calibration()))
    assert notes[0].startswith("equalized 2 pairs of layers")
    spreads = [float(number) for number in re.findall(r"([\d.e+]+)x", notes[0])]
    assert min(spreads[::2]) > 50
    assert max(spreads[1::2]) < 5


@pytest.mark.parametrize("quantize", [int8_tflite, int8_onnx])
def test_equalizing_restores_int8_per_tensor(
    tmp_path: Path, digits: Digit, quantize: Callable[..., Model]
) -> None:
    trained, bad, equalized = digits
    broken, good = quantize(bad, tmp_path / "bad"), quantize(equalized, tmp_path / "good")
    inputs, labels = evaluation(trained)
    expected = outputs(trained, inputs)
    top1 = np.mean(expected.argmax(1) == labels)
    found = {}
    for name, model in (("bad", broken), ("good", good)):
        arranged = evaluation(model)[0]
        found[name] = outputs(model, arranged)
    assert np.mean(found["bad"].argmax(1) == labels) < top1 - 0.03
    assert snr_db(expected, found["bad"]) < 8
    assert np.mean(found["good"].argmax(1) == labels) >= top1 - 0.01
    assert snr_db(expected, found["good"]) > 25


def test_bias_correction_brings_int8_nearer_to_the_source(tmp_path: Path, digits: Digit) -> None:
    trained, bad, _ = digits
    corrected = repaired(CorrectBias(per_channel=False), bad, tmp_path / "corrected")
    inputs, labels = evaluation(trained)
    expected = outputs(trained, inputs)
    found = [
        outputs(m, evaluation(m)[0])
        for m in (int8_onnx(bad, tmp_path / "without"), int8_onnx(corrected, tmp_path / "with"))
    ]
    accuracy = [np.mean(values.argmax(1) == labels) for values in found]
    assert accuracy[1] > accuracy[0] + 0.02
    assert snr_db(expected, found[1]) > snr_db(expected, found[0]) + 2
    # The intermediate float model is shifted against the expected error.
    shifted = outputs(corrected, inputs)
    assert 5 < snr_db(expected, shifted) < 40


def to_nearest(model: Model, path: Path, bits: int, per_channel: bool) -> Model:
    """All weights rounded to nearest."""
    graph, inputs = torch_program.plain_graph(model)
    for layer in torch_layers.layers(graph):
        layer.set_weight(graph, torch_grid.nearest(layer.weight(graph), bits, per_channel))
    return torch_program.save_plain(graph, path, model, inputs)


@pytest.mark.parametrize("per_channel", [True, False])
def test_four_bits_are_restored_by_either_repair(tmp_path: Path, digits: Digit, per_channel: bool) -> None:
    trained, _, _ = digits
    rounding = RoundWeights(bits=4, per_channel=per_channel, iterations=200, samples=64)
    learned = repaired(rounding, trained, tmp_path / "learned")
    corrected = repaired(CorrectBias(bits=4, per_channel=per_channel), trained, tmp_path / "corrected")
    samples, labels = evaluation(trained)
    expected = outputs(trained, samples)
    nearest = outputs(to_nearest(trained, tmp_path / "nearest.pt2", 4, per_channel), samples)
    with_bias = outputs(to_nearest(corrected, tmp_path / "bias.pt2", 4, per_channel), samples)
    with_rounding = outputs(learned, samples)
    assert snr_db(expected, with_bias) > snr_db(expected, nearest) + 4
    assert snr_db(expected, with_rounding) > snr_db(expected, nearest) + 8
    top1 = np.mean(expected.argmax(1) == labels)
    if not per_channel:
        assert np.mean(nearest.argmax(1) == labels) < top1 - 0.04
    assert np.mean(with_bias.argmax(1) == labels) >= top1 - 0.01
    assert np.mean(with_rounding.argmax(1) == labels) >= top1 - 0.01
    graph, _ = torch_program.plain_graph(learned)
    for layer in torch_layers.layers(graph):
        weight = layer.weight(graph)
        codes = weight / torch_grid.scales(weight, 4, per_channel)
        assert float((codes - codes.round()).abs().max()) < 1e-4
        assert float(codes.abs().max()) == pytest.approx(7)


def test_layers_may_have_bits_of_their_own(tmp_path: Path, digits: Digit) -> None:
    trained, _, _ = digits
    rounding = RoundWeights(layers={"conv2": 4, "block1.*": 5}, iterations=20, samples=16)
    graph, _ = torch_program.plain_graph(repaired(rounding, trained, tmp_path / "rounded"))
    found = {}
    for layer in torch_layers.layers(graph):
        weight = layer.weight(graph)
        levels = {bits: weight / torch_grid.scales(weight, bits, True) for bits in (4, 5, 8)}
        found[layer.name] = min(
            b for b, codes in levels.items() if (codes - codes.round()).abs().max() < 1e-3
        )
    assert found["conv2"] == 4
    assert {bits for name, bits in found.items() if name.startswith("block1")} == {5}
    assert {bits for name, bits in found.items() if name in ("conv1", "linear")} == {8}
    with pytest.raises(StageError, match="no layer is called 'conv9'"):
        repaired(RoundWeights(layers={"conv9": 4}, iterations=1), trained, tmp_path / "no")


@pytest.mark.parametrize("per_channel", [True, False])
def test_quantizers_find_the_learned_integers(tmp_path: Path, digits: Digit, per_channel: bool) -> None:
    trained, _, _ = digits
    model = repaired(
        RoundWeights(per_channel=per_channel, iterations=20, samples=16), trained, tmp_path / "rounded"
    )
    graph, _ = torch_program.plain_graph(model)
    learned = []
    for layer in torch_layers.layers(graph):
        weight = layer.weight(graph)
        codes = (weight / torch_grid.scales(weight, 8, per_channel)).round()
        learned.append(codes.numpy().astype(np.int8))
    converted = repaired(ExportedProgramToOnnx(), model, tmp_path / "onnx")
    onnx8 = NEAREST.model_copy(update={"per_channel": per_channel})
    found = onnx_codes(repaired(onnx8, converted, tmp_path / "onnx8").path)
    assert all(sorted_codes(codes) in found for codes in learned)
    converted = repaired(ExportedProgramToTflite(), model, tmp_path / "tflite")
    quantized = repaired(QuantizeTflite(per_channel=per_channel), converted, tmp_path / "tflite8")
    found = tflite_codes(quantized.path)
    assert all(sorted_codes(codes) in found for codes in learned)


def sorted_codes(codes: Array) -> bytes:
    """The integers of a weight regardless of its axis order, which differs between formats."""
    return bytes(np.sort(codes.astype(np.int8), axis=None).tobytes())


def onnx_codes(path: Path) -> set[bytes]:
    import onnx

    found = set()
    for tensor in onnx.load(path).graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.uint8:
            found.add(sorted_codes(values.astype(np.int16) - 128))
        elif values.dtype == np.int8:
            found.add(sorted_codes(values))
    return found


def tflite_codes(path: Path) -> set[bytes]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    found = set()
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8:
            try:
                found.add(sorted_codes(interpreter.get_tensor(detail["index"])))
            except ValueError:
                continue  # a runtime tensor without its own memory
    return found


def saved(module: Any, folder: Path, shape: tuple[int, ...] = (1, 3, 8, 8)) -> Model:
    """A toy network as an exported program."""
    folder.mkdir()
    spec = TensorSpec(name="image", shape=shape, layout="NCHW" if len(shape) == 4 else None)
    model = Model(format="torch", path=folder, inputs=(spec,))
    return torch_program.save_module(module.eval(), folder / "model.pt2", model, (spec,))


def network(*parts: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(*parts)


def test_channels_are_followed_through_everything_that_keeps_them_apart(tmp_path: Path) -> None:
    nn = torch.nn

    class Turned(nn.Module):
        """Flattens in NHWC order, as networks from a channels-last framework do."""

        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1).flatten(1)

    module = network(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ZeroPad2d((0, 1, 1, 0)),
        nn.Conv2d(6, 12, 3, groups=3), nn.LeakyReLU(0.1), nn.Upsample(scale_factor=2), nn.AvgPool2d(2),
        nn.Conv2d(12, 12, 1, groups=12), nn.ReLU(), Turned(), nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 2),
    )  # fmt: skip
    with torch.no_grad():
        for part in module:
            if isinstance(part, nn.Conv2d):
                part.weight *= torch.logspace(0, 2, len(part.weight)).reshape(-1, 1, 1, 1)
    model = saved(module, tmp_path / "model")
    graph, _ = torch_program.plain_graph(model)
    assert len(torch_chains.pairs(graph)) == 4
    feed = Feed(Noise(), Preprocessing())
    inputs = [sample.inputs[0][None] for sample in Noise().samples()]
    for number, given in enumerate((feed, None)):
        result = Equalize().run(model, Notes().context(tmp_path / str(number), given))
        before, after = outputs(model, inputs), outputs(result, inputs)
        assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


def test_pairs_end_where_something_else_reads_or_mixes(tmp_path: Path) -> None:
    nn = torch.nn

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.shared = nn.Conv2d(3, 3, 1)

        def forward(self, x: Any) -> Any:
            y = self.first(x).relu()
            y = self.second(y) + y  # two consumers
            y = self.third(y).sigmoid()  # not homogeneous
            return self.shared(self.shared(y).relu())  # one weight, two places

    model = saved(Apart(), tmp_path / "model")
    graph, _ = torch_program.plain_graph(model)
    assert torch_chains.pairs(graph) == []
    assert [layer.name for layer in torch_layers.layers(graph)] == ["first", "second", "third"]
    assert torch_layers.others(graph) == ["shared (conv2d)", "shared (conv2d)"]
    with pytest.raises(StageError, match="the model has no pair of layers that can be equalized"):
        Equalize().run(model, Notes().context(tmp_path / "out", Feed(Noise(), Preprocessing())))
    notes = Notes()
    RoundWeights(iterations=1).run(model, notes.context(tmp_path / "r", Feed(Noise(), Preprocessing())))
    assert notes[-1] == "weights not rounded: shared (conv2d), shared (conv2d)"


@pytest.mark.parametrize("size", [0.1, 100.0])
def test_ceiling_goes_only_where_nothing_reaches_it(tmp_path: Path, size: float) -> None:
    nn = torch.nn
    module = network(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    model = saved(module, tmp_path / "model")
    notes = Notes()
    result = Equalize().run(model, notes.context(tmp_path / "out", Feed(Noise(size=size), Preprocessing())))
    operators = [str(node.target) for node in torch_program.plain_graph(result)[0].graph.nodes]
    assert sum("relu.default" in name for name in operators) == (2 if size < 1 else 1)
    expected = "no calibration sample reaches, by ReLU between: 0" if size < 1 else "not equalized: 0 -> 2"
    assert any(expected in note for note in notes)
    inputs = [sample.inputs[0][None] for sample in Noise(size=size).samples()]
    before, after = outputs(model, inputs), outputs(result, inputs)
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


def test_a_constant_channel_is_not_scaled_up(tmp_path: Path) -> None:
    """Tiny weights, large bias: scaled by its weights alone, it would dominate its tensor."""
    module = network(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
    with torch.no_grad():
        module[0].weight[0] *= 1e-4
        module[0].bias[0] = 1.0
    model = saved(module, tmp_path / "model")
    result = Equalize().run(model, Notes().context(tmp_path / "out", Feed(Noise(), Preprocessing())))
    graph, _ = torch_program.plain_graph(result)
    first = torch_layers.layers(graph)[0]
    assert float(first.bias(graph)[0]) < 10


@pytest.mark.parametrize("stage", [Equalize(), CorrectBias(), RoundWeights(iterations=2)])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Noise(count=0), "calibration data is empty"),
        (Noise(broken=True), "sample 0 contains NaN"),
        (Noise(shape=(3, 9, 9)), r"has the shape \[1, 3, 9, 9\]"),
    ],
)
def test_unusable_calibration_is_explained(tmp_path: Path, stage: Stage, data: Dataset, message: str) -> None:
    model = saved(network(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)), tmp_path / "model")
    with pytest.raises(StageError, match=message):
        stage.run(model, Notes().context(tmp_path / "out", Feed(data, Preprocessing())))


@pytest.mark.parametrize("stage", [CorrectBias(), RoundWeights()])
def test_what_cannot_be_had_is_refused(tmp_path: Path, stage: Stage) -> None:
    model = saved(network(torch.nn.Conv2d(3, 4, 3)), tmp_path / "model")
    with pytest.raises(StageError, match="needs calibration data"):
        stage.run(model, Notes().context(tmp_path / "none", None))
    model = saved(network(torch.nn.ReLU()), tmp_path / "empty")
    with pytest.raises(StageError, match="has no convolution or linear layer"):
        stage.run(model, Notes().context(tmp_path / "out", Feed(Noise(), Preprocessing())))


def test_layers_of_every_rank_are_rounded_no_worse_than_nearest(tmp_path: Path) -> None:
    nn = torch.nn
    module = network(
        nn.Conv1d(4, 6, 3, padding=2, dilation=2, bias=False), nn.ReLU(),
        nn.Conv1d(6, 6, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(42, 5),
    )  # fmt: skip
    model = saved(module, tmp_path / "model", (1, 4, 16))
    feed = Feed(Noise(shape=(4, 16), count=64), Preprocessing())
    learned = repaired(RoundWeights(bits=4, iterations=200), model, tmp_path / "learned", feed)
    corrected = repaired(CorrectBias(bits=4), model, tmp_path / "corrected", feed)
    nearest = to_nearest(model, tmp_path / "nearest.pt2", 4, True)
    samples = [sample.inputs[0][None] for sample in Noise(shape=(4, 16), count=96).samples()][64:]
    expected = outputs(model, samples)
    assert snr_db(expected, outputs(learned, samples)) > snr_db(expected, outputs(nearest, samples)) + 0.5
    # The first layer gained a bias.
    assert all(
        layer.node.args[2] is not None
        for layer in torch_layers.layers(torch_program.plain_graph(corrected)[0])
    )


def test_samples_are_a_fixed_number_drawn_from_all() -> None:
    spec = TensorSpec(name="x", shape=(1,))
    values = [(np.full(1, number, np.float32),) for number in range(1000)]
    drawn = [float(sample[0][0]) for sample in torch_layer_by_layer.draw(iter(values), (spec,), 50)]
    assert len(set(drawn)) == 50
    assert 350 < np.mean(drawn) < 650
    assert drawn == [float(sample[0][0]) for sample in torch_layer_by_layer.draw(iter(values), (spec,), 50)]
    assert [float(sample[0][0]) for sample in torch_layer_by_layer.draw(values[:3], (spec,), 50)] == [0, 1, 2]


CIFAR = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NHWC")


def accuracy(model: Model, judged: Feed) -> float:
    samples = list(judged.samples(model))
    answers = outputs(model, [sample.inputs[0] for sample in samples]).argmax(1)
    return float(np.mean(answers == [sample.label for sample in samples]))


@pytest.mark.slow
def test_resnet20_is_restored_within_a_point(tmp_path: Path, real_data: Path) -> None:
    feed = Feed(Npz(path=real_data / "cifar10" / "calibration512.npz", limit=128), CIFAR)
    judged = Feed(Npz(path=real_data / "cifar10" / "test446.npz"), CIFAR)
    trained = networks.exported(networks.RESNET20, tmp_path / "trained", data=real_data)
    source = accuracy(trained, judged)
    bad = networks.exported(networks.RESNET20, tmp_path / "hostile", data=real_data, factor=100)
    good = repaired(Equalize(), bad, tmp_path / "equalized", feed)
    assert accuracy(int8_tflite(bad, tmp_path / "bad", feed), judged) < source - 0.1
    assert accuracy(int8_tflite(good, tmp_path / "good", feed), judged) >= source - 0.01
    rounding = RoundWeights(bits=4, per_channel=False, iterations=100, samples=64)
    learned = repaired(rounding, trained, tmp_path / "learned", feed)
    assert accuracy(to_nearest(trained, tmp_path / "nearest.pt2", 4, False), judged) < source - 0.04
    assert accuracy(learned, judged) >= source - 0.01
