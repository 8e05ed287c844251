"""Fine-tuning PyTorch modules: preserved constraints, killed processes, and quantization-aware training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.config.files import file_digest
from edgeopt.errors import StageError
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.formats.torch.files import module as torch_module
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.prune.masks import DENSE, Keeper
from edgeopt.formats.torch.train.distillation import Hints, Learner
from edgeopt.formats.torch.train.fake_quant import FakeQuantizer
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Feed
from edgeopt.stages.cluster_torch import ClusterTorch
from edgeopt.stages.finetune_torch import FinetuneTorch
from edgeopt.stages.load_torch import LoadTorch
from edgeopt.stages.prune_torch import PruneTorch
from edgeopt.stages.torch_to_exported_program import TorchToExportedProgram
from needs import needs

torch = pytest.importorskip("torch")
needs("torch_pruning")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # torch, torchao and torch-pruning warn about their own code
]

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SCALED = Preprocessing(scale=1 / 16, layout="NHWC")
TUNE: dict[str, Any] = {"epochs": 6, "learning_rate": 0.05, "batch_size": 64}


def load(folder: Path) -> Model:
    return LoadTorch(
        factory={"target": "models.digits_cnn:digits_cnn", "folder": RECIPES},
        weights=RECIPES / "digits" / "digits.safetensors",
        inputs=(TensorSpec(name="image", shape=(1, 1, 8, 8), layout="NCHW"),),
    ).run(Model(format="torch_source", path=Path()), context(folder))


def context(folder: Path, notes: list[str] | None = None, **parts: Any) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    note = [].append if notes is None else notes.append
    usual: dict[str, Any] = {"progress": lambda _: None, "training": Feed(Digits(part="train"), SCALED)}
    return Context(folder, Feed(Digits(part="calibration"), SCALED), note=note, **(usual | parts))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network of the recipe digits-torch."""
    return load(tmp_path_factory.mktemp("digits"))


def weight(model: Model, name: str) -> Array:
    return np.asarray(torch_module.build(model).get_submodule(name).weight.detach().numpy())


def evaluation(model: Model) -> tuple[Any, Array]:
    samples = list(Feed(Digits(part="evaluation"), SCALED).samples(model))
    return torch.from_numpy(np.concatenate([s.inputs[0] for s in samples])), np.array(
        [s.label for s in samples]
    )


def accuracy(model: Model) -> float:
    values, labels = evaluation(model)
    with torch.no_grad():
        return float((torch_module.build(model)(values).argmax(1).numpy() == labels).mean())


def test_distillation_brings_a_pruned_model_back(digits: Model, tmp_path: Path) -> None:
    pruned = PruneTorch(channels=0.5).run(digits, context(tmp_path / "p"))
    said: list[str] = []
    notes: list[str] = []
    tuned = FinetuneTorch(**TUNE).run(
        pruned, context(tmp_path / "f", notes, source=digits, progress=said.append)
    )
    assert accuracy(pruned) < 0.5 and accuracy(tuned) > 0.95
    assert weight(tuned, "conv2").shape == (16, 16, 3, 3)
    assert "epoch 6/6: loss" in said[-1] and "agreement" in notes[-1]
    # Batch norm statistics changed as well.
    before, after = (torch_module.build(model).bn1.running_mean for model in (pruned, tuned))
    assert not torch.equal(before, after)


def test_zeros_come_step_by_step_and_stay(digits: Model, tmp_path: Path) -> None:
    pruned = PruneTorch(weights=0.8).run(digits, context(tmp_path / "p"))
    keeper = Keeper(torch_module.build(pruned), pruned.path, 10)
    shares = []
    for epoch in range(1, 8):
        settled = keeper.begin(epoch)
        shares.append(float((keeper.weights["conv2.weight"] == 0).float().mean()))
        assert settled == (epoch >= 5)
    wanted = [0.8 * (1 - (1 - epoch / 5) ** 3) for epoch in range(1, 6)]
    assert shares == pytest.approx([*wanted, 0.8, 0.8], abs=0.001)
    tuned = FinetuneTorch(**TUNE).run(pruned, context(tmp_path / "f", source=digits))
    for name in ("conv1", "conv2", "block1.pointwise", "linear"):
        assert (weight(tuned, name) == 0).mean() == pytest.approx(0.8, abs=0.01)
    assert accuracy(tuned) > accuracy(pruned) and accuracy(tuned) > 0.94
    assert not (tuned.path / DENSE).exists()
    # After more training, the same weights are zero.
    again = FinetuneTorch(**TUNE | {"epochs": 1, "held_out": 0}).run(
        tuned, context(tmp_path / "g", source=digits)
    )
    assert np.array_equal(weight(again, "conv2") == 0, weight(tuned, "conv2") == 0)
    assert not np.array_equal(weight(again, "conv2"), weight(tuned, "conv2"))


def test_patterns_and_clusters_stay(digits: Model, tmp_path: Path) -> None:
    blocks = PruneTorch(n_m=(2, 4)).run(digits, context(tmp_path / "p"))
    shared = ClusterTorch(clusters=8).run(blocks, context(tmp_path / "c"))
    tuned = FinetuneTorch(**TUNE).run(shared, context(tmp_path / "f", source=digits))
    before, after = weight(shared, "conv2"), weight(tuned, "conv2")
    assert np.array_equal(before == 0, after == 0) and (after == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(after)) == len(np.unique(before)) <= 9
    # Shared values are still shared, and have changed.
    for value in np.unique(before):
        assert len(np.unique(after[before == value])) == 1
    assert np.abs(after - before).max() > 1e-3
    assert accuracy(tuned) > 0.94


def test_a_killed_process_costs_one_epoch_and_no_bit(digits: Model, tmp_path: Path) -> None:
    pruned = PruneTorch(weights=0.5).run(digits, context(tmp_path / "p"))
    options = TUNE | {"epochs": 12, "augment": ("shift", "mixup")}
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "import test_finetune_torch as t\n"
        "from edgeopt.model import Model\n"
        "source, pruned = (Model.model_validate_json(text) for text in sys.argv[2:4])\n"
        f"t.FinetuneTorch(**{options!r}).run(pruned, t.context(Path(sys.argv[4]), source=source, "
        "checkpoints=Path(sys.argv[5])))\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(Path(__file__).parent),
        *(m.model_dump_json() for m in (digits, pruned)),
    ]
    checkpoints = tmp_path / "checkpoints"
    process = subprocess.Popen([*command, str(tmp_path / "killed"), str(checkpoints)])
    try:
        deadline = time.monotonic() + 120
        while not any(checkpoints.glob("epoch-0000[3-9]")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = max(int(path.name[-5:]) for path in checkpoints.glob("epoch-*"))
    assert 3 <= done < 12 and not (tmp_path / "killed" / "model").exists()
    said: list[str] = []
    parts = {"source": digits, "progress": said.append, "checkpoints": checkpoints}
    resumed = FinetuneTorch(**options).run(pruned, context(tmp_path / "resumed", **parts))
    assert f"resuming after epoch {done}" in said
    whole = FinetuneTorch(**options).run(pruned, context(tmp_path / "whole", source=digits))
    files = [model.path / torch_module.WEIGHTS for model in (resumed, whole)]
    assert file_digest(files[0]) == file_digest(files[1])


def test_a_rate_too_high_is_told(digits: Model, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"loss is (nan|inf) in epoch \d+, at a learning rate of"):
        FinetuneTorch(epochs=3, learning_rate=1e18, batch_size=64).run(
            digits, context(tmp_path, source=digits)
        )


def test_labels_and_squared_errors_work_as_well(digits: Model, tmp_path: Path) -> None:
    pruned = PruneTorch(channels=0.5).run(digits, context(tmp_path / "p"))
    for name, options in {
        "labels": {"distill": False},
        "mse": {"loss": "mse", "learning_rate": 0.02},
    }.items():
        tuned = FinetuneTorch(**TUNE | options).run(pruned, context(tmp_path / name, source=digits))
        assert accuracy(tuned) > 0.9, name
    with pytest.raises(StageError, match="source model is missing"):
        FinetuneTorch().run(digits, context(tmp_path / "n"))


def test_blocks_that_kept_their_shape_are_imitated(digits: Model, tmp_path: Path) -> None:
    resnet = LoadTorch(
        factory={"target": "models.resnet:resnet20", "folder": RECIPES},
        inputs=(TensorSpec(name="image", shape=(1, 3, 32, 32), layout="NCHW"),),
    ).run(Model(format="torch_source", path=Path()), context(tmp_path / "r"))
    teacher, student = torch_module.build(resnet), torch_module.build(resnet)
    hints = Hints(student, teacher, resnet.inputs, 10.0)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    # A stage has the output of its last block, and is compared once.
    assert sorted(hints.names) == blocks
    assert float(hints.loss()) == 0
    with torch.no_grad():
        student.layer3[2].bn2.bias.add_(1.0)
        for module in (teacher, student):
            module(torch.ones(1, 3, 32, 32))
    assert 0 < float(hints.loss().detach()) < 100
    hints.remove()
    pruned = PruneTorch(channels=0.5).run(digits, context(tmp_path / "p"))
    assert Hints(torch_module.build(pruned), torch_module.build(digits), digits.inputs, 1.0).names == []


# Quantization-aware training


def test_rounding_is_what_int8_does(digits: Model) -> None:
    """Weights on 255 levels, activations on 256, and the gradient passes."""
    module = torch_module.build(digits)
    fake_quantizer = FakeQuantizer(10)
    values, _ = evaluation(digits)
    with torch.no_grad():
        exact, rounded = module(values), fake_quantizer.compute(module, [values])
    noise = float(((rounded - exact) ** 2).sum() / (exact**2).sum())
    assert 1e-7 < noise < 1e-2
    assert len(torch.unique(rounded)) <= 256
    # Input, relu1, depthwise, pointwise, both sides of both sums, ... and the output.
    assert len(fake_quantizer.ranges) == 13
    module.train()
    fake_quantizer.compute(module, [values[:32]]).sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in module.parameters())


def test_training_with_int8_in_the_loop_saves_a_hostile_model(digits: Model, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    hostile = torch_module.save(spread(digits), tmp_path / "hostile", digits)
    assert accuracy(hostile) == pytest.approx(accuracy(digits), abs=0.005)
    aware = FinetuneTorch(
        epochs=10, learning_rate=0.005, batch_size=64, quantization_aware=True, per_channel=False
    ).run(hostile, context(tmp_path / "aware", source=hostile))
    before, after = int8_accuracy(hostile, tmp_path / "a"), int8_accuracy(aware, tmp_path / "b")
    assert before < accuracy(hostile) - 0.08 and after > accuracy(hostile) - 0.02, (before, after)


def spread(model: Model) -> Any:
    """The same function with channel ranges of its first stream up to 100 times apart."""
    module = torch_module.build(model)
    factors = torch.logspace(0, 2, 32)[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        for norm in (module.bn1, module.block1.bn2):
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
        module.block1.depthwise.weight.div_(factors.view(-1, 1, 1, 1))
        module.conv2.weight.div_(factors.view(1, -1, 1, 1))
    return module


def int8_accuracy(model: Model, folder: Path) -> float:
    """Accuracy of the exported program in int8, one scale per tensor."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    exported = TorchToExportedProgram().run(model, context(folder))
    graph, inputs = torch_program.plain_graph(exported)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=False))
    prepared = prepare_pt2e(torch_program.export(graph, inputs).module(check_guards=False), quantizer)
    for values in Feed(Digits(part="calibration", limit=100), SCALED).inputs(exported):
        prepared(torch.from_numpy(values[0]))
    converted = convert_pt2e(prepared)
    values, labels = evaluation(exported)
    with torch.no_grad():
        found = torch.cat([converted(value[None]) for value in values])
    return float((found.argmax(1).numpy() == labels).mean())


class Twice(torch.nn.Module):
    """Two outputs of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.nn.Linear(8, 16)
        self.large, self.small = torch.nn.Linear(16, 4), torch.nn.Linear(16, 4)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.trunk(x))
        return {"large": 100 * self.large(x), "small": self.small(x)}


def learner(tmp_path: Path, *, squared_error: bool) -> Learner:
    torch.manual_seed(0)
    teacher, student = Twice(), Twice()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student.small.weight.zero_()
    (tmp_path / "model.json").write_text("{}")
    keeper = Keeper(student, tmp_path, 1)
    return Learner(student, teacher, keeper, temperature=1.0, squared_error=squared_error)


def test_every_channel_of_an_output_is_taught(tmp_path: Path) -> None:
    """As of a detector: distances and scores in one tensor, and the student has forgotten the small ones."""

    def network(small: float) -> torch.nn.Module:
        torch.manual_seed(0)
        head = torch.nn.Linear(8, 32)
        with torch.no_grad():
            head.weight *= torch.tensor([100.0, small]).repeat_interleave(16)[:, None]
        return torch.nn.Sequential(head, torch.nn.Unflatten(1, (2, 16)))

    student, teacher = network(0.0), network(1.0)
    (tmp_path / "model.json").write_text("{}")
    one = Learner(student, teacher, Keeper(student, tmp_path, 1), temperature=1.0, squared_error=True)
    random = np.random.default_rng(0)
    for _ in range(200):
        inputs = [random.standard_normal((64, 8)).astype(np.float32)]
        one.step(inputs, one.teacher(inputs), 0.05)
    values = torch.randn(256, 8)
    with torch.no_grad():
        wanted, got = teacher(values), student(values)
    assert float(((got - wanted)[:, 1] ** 2).mean() / (wanted[:, 1] ** 2).mean()) < 0.05


def test_every_output_is_taught(tmp_path: Path) -> None:
    both = learner(tmp_path, squared_error=True)
    random = np.random.default_rng(0)
    for _ in range(200):
        inputs = [random.standard_normal((64, 8)).astype(np.float32)]
        both.step(inputs, both.teacher(inputs), 0.05)
    inputs = [random.standard_normal((256, 8)).astype(np.float32)]
    wanted, got = both.teacher(inputs), both.outputs(inputs)
    assert wanted.shape == (256, 8)
    assert np.allclose(np.sqrt((wanted.reshape(256, 2, 4) ** 2).mean(axis=(0, 2))), 1, atol=0.3)
    errors = ((wanted - got) ** 2).reshape(256, 2, 4).mean(axis=(0, 2))
    assert errors[0] < 0.02 and errors[1] < 0.1  # without training, the second one is 1


def test_class_scores_are_taught_to_one_output_only(tmp_path: Path) -> None:
    one = learner(tmp_path, squared_error=False)
    with pytest.raises(StageError, match="one output of class scores, and the model has 2 outputs") as error:
        one.outputs([np.zeros((2, 8), np.float32)])
    assert "loss: mse" in error.value.fix


def test_a_step_stays_on_its_device(digits: Model, tmp_path: Path) -> None:
    """On tensors without values, which refuse others as those of a GPU do; reading the loss ends the step."""
    student, teacher = torch_module.build(digits), torch_module.build(digits)
    hints = Hints(student, teacher, digits.inputs, 1.0)
    with torch.device("meta"):
        for module in (student, teacher):
            module.to("meta")
        keeper = Keeper(student, digits.path, 1)
        on_meta = Learner(student, teacher, keeper, temperature=1.0, squared_error=True, hints=hints)
        assert on_meta.device.type == "meta"
        on_meta.scaled.scales = [torch.ones(())]  # without data, outputs have none
        images, scores = np.zeros((4, 1, 8, 8), np.float32), np.zeros((4, 10), np.float32)
        on_meta.last_teacher_inputs = inputs = [images]
        on_meta._logits(teacher, inputs)
        with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
            on_meta.step(inputs, scores, 0.1)
    assert all(parameter.grad is not None for parameter in student.parameters())
