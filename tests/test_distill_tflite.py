"""Training of int8 TFLite files: what is simulated is what LiteRT computes, and codes stay as short."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.formats.output_scales import scales_of
from edgeopt.formats.tflite.files.graphs import graphs_of, read_signature
from edgeopt.formats.tflite.files.model_file import load, parse
from edgeopt.formats.tflite.files.schema import OPERATORS
from edgeopt.formats.tflite.files.weight_coding import layers_of
from edgeopt.formats.tflite.graph.interpreter import outputs
from edgeopt.formats.tflite.graph.scores import before_sharp
from edgeopt.formats.tflite.quantize.rate_distortion import code_bits
from edgeopt.formats.tflite.train.codes import PRICE, priced
from edgeopt.formats.tflite.train.distillation import CodeLearner, network_of
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.coarsen_tflite import CoarsenTflite
from edgeopt.stages.distill_tflite import DistillTflite
from edgeopt.stages.exported_program_to_tflite import ExportedProgramToTflite
from edgeopt.stages.load_torch import LoadTorch
from edgeopt.stages.quantize_tflite import QuantizeTflite
from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram
from needs import needs
from toy_layers import IMAGE, OUTPUT, SHAPES, few_values, two_layers

torch = pytest.importorskip("torch")
needs("litert_torch", "ai_edge_litert", "ai_edge_quantizer", "sklearn")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch warns about its own code

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SCALED = Preprocessing(scale=1 / 16, layout="NHWC")


def context(folder: Path, notes: list[str] | None = None, **parts: Any) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    usual: dict[str, Any] = {"progress": lambda _: None, "note": ([] if notes is None else notes).append}
    return Context(folder, Feed(Digits(part="calibration"), SCALED), **(usual | parts))


class Everything(torch.nn.Module):
    """Every operator that a converted network of images may have, as far as it is simulated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.grouped = torch.nn.Conv2d(8, 16, 1)
        self.dense = torch.nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.first(x))
        y = torch.nn.functional.relu6(self.depthwise(x)) + x
        y = torch.nn.functional.max_pool2d(y, 3, 2, padding=1) - torch.nn.functional.avg_pool2d(y, 2)
        y = torch.nn.functional.pad(y[:, :, 1:, ::2], (1, 1, 0, 1))
        y = torch.cat([y, y.tanh()], 1)[:, 4:12]
        y = self.grouped(y)
        return (self.dense((y * y.sigmoid()).mean((2, 3)))).softmax(-1)


def test_the_simulation_computes_what_litert_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = TensorSpec(name="image", shape=(1, 3, 16, 16), layout="NCHW")
    source = Model(format="torch", path=tmp_path)
    program = torch_program.save_module(Everything().eval(), tmp_path / "model.pt2", source, (spec,))
    converted = ExportedProgramToTflite().run(program, context(tmp_path / "float"))
    random = np.random.default_rng(0)
    samples = [(random.normal(size=converted.inputs[0].shape).astype(np.float32),) for _ in range(32)]
    kinds = {operation.kind for operation in graphs_of(load(converted.path))[0].operations}
    assert len(kinds) > 10, kinds

    def compared(path: Path) -> np.ndarray[Any, Any]:
        file = load(path)
        with torch.no_grad():
            (scores,) = network_of(file)([torch.from_numpy(np.concatenate([each for (each,) in samples]))])
        return np.abs(scores.softmax(-1).numpy() - outputs(path, samples).arrays[0])

    assert compared(converted.path).max() < 1e-5
    quantized = tmp_path / "toy.tflite"
    quantized.write_bytes(two_layers(few_values((0, 9, -9, 18, -18)), per_channel=True))
    images = [(random.normal(0, 2, (1, 8, 8, 16)).astype(np.float32),) for _ in range(16)]
    with torch.no_grad():
        (values,) = network_of(load(quantized))([torch.from_numpy(np.concatenate([x for (x,) in images]))])
    # A sum in the middle between two values may be rounded to either.
    steps = np.abs(values.numpy() - outputs(quantized, images).arrays[0]) / OUTPUT
    assert steps.max() < 1.01 and np.mean(steps > 0.01) < 0.005
    assert np.std(values.numpy()) > 1


def test_an_operator_that_is_not_simulated_is_named() -> None:
    file = parse(two_layers(few_values((0, 9, -9))), "toy.tflite")
    first, second = file.model.tables("operator_codes")
    number = OPERATORS.index("SPACE_TO_DEPTH")
    other = second.but(builtin_code=number, deprecated_builtin_code=number)
    model = file.model.but(operator_codes=(first, other))
    with pytest.raises(StageError, match=r"toy.tflite has SPACE_TO_DEPTH, which training does not simulate"):
        network_of(file._replace(model=model))


def test_values_with_long_codes_are_reached_less_easily() -> None:
    codes = np.repeat(np.array([-2, -1, 0, 1, 2], np.int8), [1, 20, 100, 20, 1])
    values, edges = priced(codes)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    # Zero has a code of one bit, one of them one of two, and the other one of three.
    assert edges[1] == pytest.approx(-0.5 - PRICE * (3 - 1) / 2, abs=PRICE) and edges[2] > 0.5
    assert np.all(np.diff(edges) > 0)
    free, middle = priced(codes, 0.0)
    assert middle.tolist() == [-1.5, -0.5, 0.5, 1.5] and free.tolist() == values.tolist()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model, Model]:
    """The network of the recipe digits-torch, its int8 file, and that file coarsened."""
    folder = tmp_path_factory.mktemp("digits")
    source = LoadTorch(
        factory={"target": "models.digits_cnn:digits_cnn", "folder": RECIPES},
        weights=RECIPES / "digits" / "digits.safetensors",
        inputs=(TensorSpec(name="image", shape=(1, 1, 8, 8), layout="NCHW"),),
    ).run(Model(format="torch_source", path=Path()), context(folder / "torch"))
    program = TorchToExportedProgram().run(source, context(folder / "program"))
    converted = ExportedProgramToTflite().run(program, context(folder / "tflite"))
    quantized = QuantizeTflite().run(converted, context(folder / "int8"))
    return source, quantized, CoarsenTflite(bits=1).run(quantized, context(folder / "coarse"))


def agreement(model: Model, reference: Model) -> float:
    samples = [*Feed(Digits(part="evaluation"), SCALED).samples(model)]
    scores = [outputs(each.path, [s.inputs for s in samples]).arrays[0] for each in (model, reference)]
    return float(np.mean(scores[0].argmax(1) == scores[1].argmax(1)))


def bits(model: Model) -> int:
    return sum(code_bits(layer.values) for layer in layers_of(graphs_of(load(model.path))[0]))


def test_a_coarse_file_learns_the_answers_of_the_source(
    digits: tuple[Model, Model, Model], tmp_path: Path
) -> None:
    source, quantized, coarse = digits
    notes: list[str] = []
    training = Feed(Digits(part="train"), SCALED)
    stage = DistillTflite(epochs=6)
    trained = stage.run(coarse, context(tmp_path / "a", notes, training=training, source=source))
    before, after = agreement(coarse, quantized), agreement(trained, quantized)
    assert before < 0.9 and after > before + 0.01, (before, after)
    assert bits(trained) < 1.01 * bits(coarse)
    assert "explained variance" in notes[-1] and "of them have changed" in notes[-1]
    again = stage.run(coarse, context(tmp_path / "b", training=training, source=source))
    assert again.path.read_bytes() == trained.path.read_bytes()


def test_an_interrupted_training_ends_with_the_same_file(
    digits: tuple[Model, Model, Model], tmp_path: Path
) -> None:
    source, _, coarse = digits

    class Killed(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise Killed

    training, stage = Feed(Digits(part="train"), SCALED), DistillTflite(epochs=3)
    parts = {"training": training, "source": source}
    whole = stage.run(coarse, context(tmp_path / "whole", **parts))
    kept = tmp_path / "checkpoints"
    with pytest.raises(Killed):
        stage.run(coarse, context(tmp_path / "killed", progress=stop, checkpoints=kept, **parts))
    resumed = stage.run(coarse, context(tmp_path / "resumed", checkpoints=kept, **parts))
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_a_file_or_a_teacher_that_cannot_be_trained(
    digits: tuple[Model, Model, Model], tmp_path: Path
) -> None:
    source, _, coarse = digits
    training = Feed(Digits(part="train"), SCALED)
    other = Model(format="keras", path=tmp_path)
    with pytest.raises(StageError, match="the source model is keras, which cannot be the teacher"):
        DistillTflite().run(coarse, context(tmp_path / "a", training=training, source=other))
    with pytest.raises(StageError, match="training data"):
        DistillTflite().run(coarse, context(tmp_path / "b", source=source))
    signature = read_signature(coarse.path)
    assert signature.inputs[0].dtype in ("float32", "int8")
    graph = graphs_of(load(coarse.path))[0]
    assert before_sharp(graph, graph.outputs[0]).number in {t.number for t in graph.tensors}


def test_several_kinds_of_outputs_are_learned_by_squared_error() -> None:
    values = (0, 9, -9, 18, -18)
    taught, other = (parse(two_layers(few_values(values, seed)), "toy") for seed in (0, 1))
    learner = CodeLearner(other, network_of(taught), temperature=1.0, squared_error=True)
    assert [tuple(each.weights.shape) for each in learner.codes] == [*SHAPES]
    random = np.random.default_rng(0)
    losses = []
    for _ in range(80):
        inputs = (random.normal(0, 2, size=(4, 8, 8, 16)).astype(np.float32),)
        losses.append(learner.step(inputs, learner.teacher(inputs), 1.0))
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8])
    assert 0.3 < learner.changed < 1
    assert {*np.unique(layers_of(graphs_of(parse(learner.content(), "toy"))[0])[0].values)} <= {*values}


class Images(Dataset):
    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(4)
        for _ in range(40):
            yield Sample((random.normal(0, 2, IMAGE[1:]).astype(np.float32),))

    def digest(self) -> str:
        return "images"


def test_a_file_with_int8_inputs_sees_the_same_images(tmp_path: Path) -> None:
    values = (0, 9, -9, 18, -18)
    models = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.tflite"
        path.write_bytes(two_layers(few_values(values, seed)))
        signature = read_signature(path, "NHWC")
        models.append(Model(format="tflite", path=path, inputs=signature.inputs, outputs=signature.outputs))
    assert models[0].inputs[0].dtype == "int8"
    samples = [(each.inputs[0][np.newaxis],) for each in Images().samples()]
    one, two = (outputs(model.path, samples).arrays[0] for model in models)
    notes: list[str] = []
    training = Feed(Images(), Preprocessing())
    stage = DistillTflite(epochs=1, held_out=0, batch_size=len(samples))
    stage.run(models[0], context(tmp_path / "out", notes, training=training, source=models[1]))
    measured = float(re.findall(r"loss ([0-9.]+) to", notes[-1])[0])
    # Relative to the scales of the source's outputs on the first batch, which is all images.
    assert measured == pytest.approx(float(np.mean(((one - two) / scales_of(two)) ** 2)), rel=0.01)
