"""Small PyTorch nets that are hard to convert, float and int8, and the messages about others."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import lowering as torch_lowering
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.formats.torch.graph.volumes import as_images
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import executorch_check
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.stages.exported_program_to_executorch import ExportedProgramToExecutorch
from edgeopt.stages.exported_program_to_torchscript import ExportedProgramToTorchscript
from edgeopt.stages.quantize_fx import QuantizeFx
from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack
from edgeopt.stages.torchscript_to_mobile import TorchscriptToMobile
from needs import needs

torch = pytest.importorskip("torch")
needs("executorch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
nn, F = torch.nn, torch.nn.functional

IMAGE = TensorSpec(name="image", shape=(1, 3, 12, 12), layout="NCHW")
ROW = TensorSpec(name="row", shape=(1, 16))
VOLUME = TensorSpec(name="volume", shape=(1, 2, 4, 6, 6))


class Net(nn.Module):
    """A convolution, what is to be tested, and a second convolution."""

    def __init__(self, between: Callable[[Any, Any], Any], channels: int, **layers: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.between = between
        self.last = nn.Conv2d(channels, 5, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        return self.last(self.between(self, F.relu(self.first(x)))).mean((2, 3))


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make().eval()


def shrunk(net: Any, x: Any) -> Any:
    """Pooling without a stride, spatial and channel slices of one tensor."""
    y = F.max_pool2d(x, 2)[..., :4]
    return y[:, :4] + y[:, 4:]


def moved(net: Any, x: Any) -> Any:
    """Slices, a transposed convolution, chunks, and values that are assigned in place."""
    y = torch.cat(net.up(shrunk(net, x)).chunk(2, 1)[::-1], 1)
    y[:, :2] = 0.25
    return torch.cat([y, torch.zeros_like(y)], 1)


def counted(net: Any, x: Any) -> Any:
    """Integers in the arithmetic of values, and constants too large to be stored."""
    above = x > 0.1
    scaled = x * above.long() + x / (above.sum((2, 3), keepdim=True) + 1)
    return F.interpolate(scaled, size=(96, 96)) + torch.full((1, 8, 96, 96), 0.5) * net.factor.weight[0, 0]


def normed(net: Any, x: Any) -> Any:
    """Groups of channels, and then each channel, with mean 0 and variance 1."""
    return F.relu(net.alone(F.relu(net.grouped(x))))


NETS: dict[str, tuple[Callable[[], Any], TensorSpec]] = {
    "moved": (
        lambda: Net(moved, 12, up=nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1)),
        IMAGE,
    ),
    "normed": (
        lambda: Net(normed, 8, grouped=nn.GroupNorm(4, 8), alone=nn.InstanceNorm2d(8, affine=True)),
        IMAGE,
    ),
    "counted": (lambda: Net(counted, 8, factor=nn.Linear(1, 1)), IMAGE),
    "rectified": (
        lambda: nn.Sequential(nn.Linear(16, 12), nn.PReLU(12), nn.Linear(12, 8), nn.PReLU(), nn.Linear(8, 4)),
        ROW,
    ),
}


class Rows(Dataset):
    """Random values for one input."""

    shape: tuple[int, ...]
    count: int = 64
    seed: int = 1

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(self.seed)
        for _ in range(self.count):
            yield Sample((random.normal(size=self.shape).astype(np.float32),))

    def digest(self) -> str:
        return "rows"


def context(folder: Path, spec: TensorSpec, notes: list[str] | None = None) -> Context:
    folder.mkdir()
    feed = Feed(Rows(shape=spec.shape[1:]), Preprocessing())
    note = (lambda _: None) if notes is None else notes.append
    return Context(folder, feed, lambda _: None, note=note)


def exported(module: Any, spec: TensorSpec, folder: Path) -> Model:
    source = Model(format="torch", path=folder)
    return torch_program.save_module(module, folder / "model.pt2", source, (spec,))


def images(spec: TensorSpec) -> list[Array]:
    return [sample.inputs[0][None] for sample in Rows(shape=spec.shape[1:], count=8, seed=2).samples()]


def outputs(run: Callable[..., Any], values: list[Array]) -> Array:
    with torch.no_grad(), torch_engine.mobile_engine():
        results = [run(torch.from_numpy(value)) for value in values]
    return np.concatenate([np.array(torch.utils._pytree.tree_leaves(result)[0]) for result in results])


def snr_db(got: Array, wanted: Array) -> float:
    assert got.shape == wanted.shape
    return float(10 * np.log10((wanted**2).sum() / max(((got - wanted) ** 2).sum(), 1e-30)))


@pytest.mark.parametrize("name", NETS)
def test_every_format_computes_what_the_source_does(name: str, tmp_path: Path) -> None:
    make, spec = NETS[name]
    module, values = seeded(make), images(spec)
    program = exported(module, spec, tmp_path)
    wanted = outputs(module, values)

    def decibels(format: str, model: Model) -> float:
        lite = format == "torchscript"
        run: Any = torch_runtimes.load_lite if lite else torch_runtimes.load_executorch
        return snr_db(outputs(run(model.path if lite else model.path.read_bytes()), values), wanted)

    def at(folder: str) -> Context:
        return context(tmp_path / folder, spec)

    script = TorchscriptToMobile().run(ExportedProgramToTorchscript().run(program, at("a")), at("b"))
    assert decibels("torchscript", script) > 100
    int8 = TorchscriptToMobile().run(QuantizeFx().run(program, at("c")), at("d"))
    assert decibels("torchscript", int8) > 27
    if name in ("moved", "normed"):  # the others have their hard operators in float in int8, too
        assert decibels("executorch", ExportedProgramToExecutorch().run(program, at("e"))) > 100
    int8 = ExportedProgramToExecutorch().run(QuantizeXnnpack().run(program, at("f")), at("g"))
    assert decibels("executorch", int8) > 27


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(2, 4, 3, padding=1, stride=(2, 1, 1), groups=2)
        self.flat = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.flat(F.relu(self.deep(x)).mean((2, 3, 4)))


class Grown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.ConvTranspose3d(2, 4, 3, (2, 2, 1), 1, output_padding=(1, 0, 0), groups=2)
        self.flat = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.flat(F.relu(self.deep(x)).mean((2, 3, 4)))


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep, self.flat = nn.Conv3d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        y = F.max_pool3d(self.deep(x), (3, 2, 3), (2, 2, 1), (1, 0, 1), ceil_mode=True)
        return self.flat(F.avg_pool3d(y, (1, 2, 2), 1).mean((2, 3, 4)))


def test_volumes_are_pooled_as_images_in_executorch(tmp_path: Path) -> None:
    program, values = exported(seeded(Pooled), VOLUME, tmp_path), images(VOLUME)
    wanted = outputs(seeded(Pooled), values)
    for stages, least in (((), 100), ((QuantizeXnnpack,), 30)):
        model = program
        for stage in (*stages, ExportedProgramToExecutorch):
            model = stage().run(model, context(tmp_path / f"{stage.__name__}{least}", VOLUME))
        run = torch_runtimes.load_executorch(model.path.read_bytes())
        assert snr_db(outputs(run, values), wanted) > least


class Padded(nn.Module):
    """What Keras makes of strides and ``padding="same"``: images NHWC, padded on two sides; and a median."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1)
        self.short, self.head = nn.Conv2d(8, 12, 1, 2), nn.Conv2d(12, 5, 3)

    def forward(self, image: Any) -> Any:
        x = F.relu(self.stem(F.pad(image, (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)))
        y = F.pad(self.pointwise(self.depthwise(x)), (0, 1, 0, 1), mode="replicate")
        y = F.max_pool2d(y, 3, 2) + self.short(x)
        return self.head(y).mean((2, 3)) - y.flatten(2).median(2)[0][:, :5]


def test_pads_and_medians_run_in_executorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second lowering that would leave an operator to the portable kernels."""
    lowered: list[Any] = []
    lower = torch_lowering._lower
    monkeypatch.setattr(torch_lowering, "_lower", lambda *given: lowered.append(given) or lower(*given))
    spec = TensorSpec(name="image", shape=(1, 12, 12, 3), layout="NHWC")
    program, values = exported(seeded(Padded), spec, tmp_path), images(spec)
    wanted = outputs(seeded(Padded), values)
    for stages, least in (((), 100), ((QuantizeXnnpack,), 30)):
        model = program
        for stage in (*stages, ExportedProgramToExecutorch):
            model = stage().run(model, context(tmp_path / f"{stage.__name__}{least}", spec))
        run = torch_runtimes.load_executorch(model.path.read_bytes())
        assert snr_db(outputs(run, values), wanted) > least
    assert len(lowered) == 2


class Gated(nn.Module):
    """WaveNet's gate: what enters tanh and sigmoid is sliced, which FX leaves to a float operator."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, image: Any) -> Any:
        values, gates = self.both(image).chunk(2, 1)
        return self.last(torch.tanh(values) * torch.sigmoid(gates) + F.hardsigmoid(values))


def test_what_enters_a_sigmoid_keeps_its_range_in_torchscript(tmp_path: Path) -> None:
    program, values = exported(seeded(Gated), IMAGE, tmp_path), images(IMAGE)
    int8 = QuantizeFx().run(program, context(tmp_path / "int8", IMAGE))
    script = TorchscriptToMobile().run(int8, context(tmp_path / "mobile", IMAGE))
    found = outputs(torch_runtimes.load_lite(script.path), values)
    assert snr_db(found, outputs(seeded(Gated), values)) > 30


def test_the_operator_that_xnnpack_names_is_left_out_first() -> None:
    """The padding of ``F.fold`` in int8: XNNPACK rejects it, portable kernels run it."""
    delegated = {"relu.default": 1, "constant_pad_nd.default": 3, "add.Tensor": 2}
    message = "XNNPACK rejects the operator StaticConstantPad (xnn_status_invalid_parameter)"
    assert next(iter(executorch_check.suspects(message, delegated))) == "constant_pad_nd.default"


def test_what_a_pass_of_the_compiler_wraps_is_one_line() -> None:
    """ExecuTorch puts the log of a pass into a bare exception, which no handler of its errors expects."""
    bare = Exception("An error occurred when running the pass\n | log line")
    with pytest.raises(RuntimeError) as found, torch_lowering._CausesOfPasses():
        raise bare
    assert str(found.value) == "An error occurred when running the pass"
    bare.__cause__ = Exception("inner")
    bare.__cause__.__cause__ = inner = ValueError("the cause")
    with pytest.raises(ValueError, match="the cause") as cause, torch_lowering._CausesOfPasses():
        raise bare
    assert cause.value is inner


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, StageError, OSError])
def test_only_bare_exceptions_of_the_compiler_are_unwrapped(kind: type[BaseException]) -> None:
    error = kind("as it is")
    error.__cause__ = ValueError("not of a pass")
    with pytest.raises(kind) as found, torch_lowering._CausesOfPasses():
        raise error
    assert found.value is error


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 3, "padding": (1, 0, 2), "output_padding": (2, 1, 0), "groups": 2},
        {"kernel_size": 3, "stride": (2, 1, 1), "padding": (1, 2, 1), "dilation": (2, 1, 2)},
        {"kernel_size": (2, 3, 3), "stride": (1, 2, 2), "padding": 2},
        {"kernel_size": 1, "stride": 2, "output_padding": 1},
    ],
)
def test_transposed_convolutions_of_volumes_are_those_of_images(
    options: dict[str, Any], tmp_path: Path
) -> None:
    module, values = seeded(lambda: nn.ConvTranspose3d(2, 4, **options)), images(VOLUME)
    graph = as_images(torch_program.plain_graph(exported(module, VOLUME, tmp_path))[0])
    kinds = {operator_name(node) for node in graph.graph.nodes}
    assert "conv_transpose2d" in kinds and "conv_transpose3d" not in kinds
    assert snr_db(outputs(graph, values), outputs(module, values)) > 120


@pytest.mark.parametrize("make", [Volumes, Grown])
def test_volumes_are_images_in_executorch_and_stay_in_float_in_mixed_torchscript(
    make: Any, tmp_path: Path
) -> None:
    program = exported(seeded(make), VOLUME, tmp_path)
    values = images(VOLUME)
    wanted = outputs(seeded(make), values)
    with pytest.raises(StageError, match=r"would stay in float: deep\n.*'deep': float32.*scheme: mixed"):
        QuantizeFx().run(program, context(tmp_path / "refused", VOLUME))
    notes: list[str] = []
    mixed = QuantizeFx(scheme="mixed").run(program, context(tmp_path / "mixed", VOLUME, notes))
    assert any("stay in float: deep" in note for note in notes)
    script = TorchscriptToMobile().run(mixed, context(tmp_path / "mobile", VOLUME))
    assert snr_db(outputs(torch_runtimes.load_lite(script.path), values), wanted) > 30
    for stages, least in (((), 100), ((QuantizeXnnpack,), 30)):
        model = program
        for stage in (*stages, ExportedProgramToExecutorch):
            model = stage().run(model, context(tmp_path / f"{stage.__name__}{least}", VOLUME))
        run = torch_runtimes.load_executorch(model.path.read_bytes())
        assert snr_db(outputs(run, values), wanted) > least


@pytest.mark.parametrize(
    ("shape", "operator"),
    [((8, 1, 1), "prelu"), ((1,), "leaky_relu"), ((8, 12, 12), "relu"), ((1, 12, 1), "relu")],
)
def test_prelu_of_several_operators_is_one(shape: tuple[int, ...], operator: str, tmp_path: Path) -> None:
    """As Keras computes it; slopes that differ inside a channel stay as they are."""
    slopes = -torch.linspace(0, 1, int(np.prod(shape))).reshape(shape)

    def rectified(net: Any, x: Any) -> Any:
        y = x - 0.5
        return F.relu(y) + slopes * F.relu(-y)

    net = seeded(lambda: Net(rectified, 8))
    graph = torch_program.plain_graph(exported(net, IMAGE, tmp_path))[0]
    kinds = [operator_name(node) for node in graph.graph.nodes]
    assert operator in kinds and (operator == "relu") == ("neg" in kinds)
    values = images(IMAGE)
    assert snr_db(outputs(graph, values), outputs(net, values)) > 120


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 6)

    def forward(self, x: Any) -> Any:
        return F.adaptive_avg_pool3d(self.head(x)[None, None], (1, 1, 4))


class Distinct(Averaged):
    def forward(self, x: Any) -> Any:
        values = torch.unique(self.head(x), return_counts=True)[1]
        return values.sum() + self.head(x)


@pytest.mark.parametrize(
    ("make", "spec", "message"),
    [
        (Averaged, ROW, r"no kernel for _adaptive_avg_pool3d \(after layer head\)"),
        (Distinct, ROW, r"does not support _unique2 \(after layer head\): .*\n  replace"),
    ],
)
def test_what_executorch_cannot_run_is_named_with_its_layer(
    make: Any, spec: TensorSpec, message: str, tmp_path: Path
) -> None:
    program = exported(seeded(make), spec, tmp_path)
    with pytest.raises(StageError, match=message) as caught:
        ExportedProgramToExecutorch().run(program, context(tmp_path / "out", spec))
    assert "0x" not in str(caught.value)


def test_an_operator_that_xnnpack_rejects_runs_on_portable_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slices of a program quantized elsewhere, with another scale before and after."""
    spec = IMAGE
    module, values = seeded(lambda: Net(shrunk, 4)), images(spec)
    monkeypatch.setattr("edgeopt.stages.quantize_xnnpack._share_scale", lambda node: None)
    quantized = QuantizeXnnpack().run(exported(module, spec, tmp_path), context(tmp_path / "int8", spec))
    monkeypatch.setattr(torch_lowering, "MOVES", frozenset())
    content = torch_lowering.lower(torch_program.read(quantized.path))
    got = outputs(torch_runtimes.load_executorch(content), values)
    assert snr_db(got, outputs(module, values)) > 27


def test_what_a_pass_of_executorch_raises_is_read_and_worked_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass wraps any error in a bare Exception, as for the dynamic int8 of MobileViT."""
    import executorch.exir

    real, calls = executorch.exir.to_edge_transform_and_lower, []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1 or always:
            raise Exception("An error occurred when running the pass") from RuntimeError("rank 4 required")
        return real(*arguments, **options)

    monkeypatch.setattr(executorch.exir, "to_edge_transform_and_lower", failing)
    program = torch.export.export(seeded(lambda: nn.Linear(16, 4)), (torch.zeros(1, 16),))
    always = False
    assert torch_lowering.lower(program).find(b"ET12") == 4 and len(calls) == 2
    always = True
    with pytest.raises(StageError, match="rank 4 required"):
        torch_lowering.lower(program)


def int8_snr_db(net: Any, spec: TensorSpec, format: str, folder: Path) -> float:
    """Of the outputs of the int8 file."""
    mobile = format == "torchscript"
    quantize = QuantizeFx() if mobile else QuantizeXnnpack()
    finish = TorchscriptToMobile() if mobile else ExportedProgramToExecutorch()
    model = quantize.run(exported(net, spec, folder), context(folder / "int8", spec))
    path = finish.run(model, context(folder / format, spec)).path
    run = torch_runtimes.load_lite(path) if mobile else torch_runtimes.load_executorch(path.read_bytes())
    return snr_db(outputs(run, images(spec)), outputs(net, images(spec)))


@pytest.mark.parametrize("format", ["executorch", "torchscript"])
@pytest.mark.parametrize(("groups", "channels"), [(2, 12), (8, 8)])
def test_transposed_convolutions_of_several_groups_are_int8(
    groups: int, channels: int, format: str, tmp_path: Path
) -> None:
    def make() -> Net:
        up = nn.ConvTranspose2d(8, channels, 3, 2, 1, output_padding=1, groups=groups)
        return Net(lambda net, x: F.relu(net.up(x)), channels, up=up)

    net = seeded(make)
    assert int8_snr_db(net, IMAGE, format, tmp_path) > 30


@pytest.mark.parametrize("format", ["executorch", "torchscript"])
@pytest.mark.parametrize("groups", [1, 3])
def test_transposed_convolutions_of_sequences_are_int8(groups: int, format: str, tmp_path: Path) -> None:
    spec = TensorSpec(name="sequence", shape=(1, 3, 20))
    net = seeded(
        lambda: nn.Sequential(nn.ConvTranspose1d(3, 6, 3, 2, groups=groups), nn.ReLU(), nn.Conv1d(6, 4, 3))
    )
    assert int8_snr_db(net, spec, format, tmp_path) > 30


@pytest.mark.parametrize(
    "gate",
    [
        lambda net, x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        lambda net, x: x + torch.exp(-x.mean((1, 2, 3), keepdim=True)),
        lambda net, x: torch.rsqrt((x * x).mean(1, keepdim=True) + 0.01) * x,
    ],
)
def test_functions_are_spread_over_int8_values_in_executorch(
    gate: Callable[[Any, Any], Any], tmp_path: Path
) -> None:
    """The mean of channels is no operator of XNNPACK, whose kernels would free memory twice behind it."""
    net = seeded(lambda: Net(gate, 8))
    assert int8_snr_db(net, IMAGE, "executorch", tmp_path) > 25


def rounded(value: Any, scale: float) -> Any:
    """A value in int8 and back."""
    arguments = (scale, 0, -128, 127, torch.int8)
    quantized = torch.ops.quantized_decomposed.quantize_per_tensor(value, *arguments)
    return torch.ops.quantized_decomposed.dequantize_per_tensor(quantized, *arguments)


class Centred(nn.Module):
    """One int8 value that a float operator reads and, with its result, one of XNNPACK, as in magika."""

    def forward(self, row: Any) -> Any:
        values = rounded(row, 0.02)
        return rounded(values - rounded(values.sum(-1, keepdim=True), 0.1), 0.1)


def test_a_value_that_operators_of_two_kinds_read_is_dequantized_for_each() -> None:
    """The compiler finds a cycle in the part for XNNPACK otherwise."""
    torch_program.register_quantized_operators()
    values, net = images(ROW), Centred()
    file = torch_lowering.lower(torch.export.export(net, (torch.zeros(1, 16),)))
    assert snr_db(outputs(torch_runtimes.load_executorch(file), values), outputs(net, values)) > 40


class Rescaled(nn.Module):
    """What a group norm of Keras computes: factors of each group times those of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 5)
        self.scale, self.shift = (nn.Parameter(torch.rand(1, 1, 4, 4) + 0.5) for _ in range(2))

    def forward(self, row: Any) -> Any:
        groups = self.first(row).reshape(1, 1, 4, 4)
        factors = torch.sigmoid(groups.mean(-1, keepdim=True))
        return self.last((groups * (factors * self.scale) + (factors + self.shift)).reshape(1, 16))


def test_values_are_spread_over_int8_constants_in_executorch(tmp_path: Path) -> None:
    """XNNPACK's own kernels would free memory twice and end the process."""
    program, values = exported(seeded(Rescaled), ROW, tmp_path), images(ROW)
    model = QuantizeXnnpack().run(program, context(tmp_path / "int8", ROW))
    left = {
        operator_name(node): node
        for node in torch_program.read(model.path).graph.nodes
        if operator_name(node) in ("add", "mul")
    }
    assert all("dequantize" in str(each.target) for node in left.values() for each in node.all_input_nodes)
    model = ExportedProgramToExecutorch().run(model, context(tmp_path / "executorch", ROW))
    run = torch_runtimes.load_executorch(model.path.read_bytes())
    assert snr_db(outputs(run, values), outputs(seeded(Rescaled), values)) > 30
