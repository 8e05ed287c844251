"""ONNX files as sources: operators as in the specification, whole networks, and refusals by name."""

import importlib
import json
import logging
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.commands.init import starter
from edgeopt.commands.start import Given
from edgeopt.errors import StageError, UsageError
from edgeopt.formats.onnx.files import header
from edgeopt.formats.source import inspect
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.onnx_operators import network
from edgeopt.formats.torch.onnx_operators.arithmetic import computed
from edgeopt.formats.torch.onnx_operators.carried import EXPANDED, STRUCTURAL, refusal
from edgeopt.formats.torch.onnx_operators.table import TABLE
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.stages.onnx_to_exported_program import OnnxToExportedProgram
from needs import needs

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
needs("onnxruntime", "torchao")
pytestmark = [
    pytest.mark.slow,
    # torch and onnx warn about their own deprecations, and the cases of onnx divide by zero.
    pytest.mark.filterwarnings("ignore"),
]

Arrays = list[NDArray[Any]]
EDGEOPT = [sys.executable, "-c", "from edgeopt.cli import main; main()"]
REAL = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")


def snr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    noise = np.square(expected.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise)) if noise else 999.0


def run_torch(proto: Any, inputs: Arrays, names: list[str]) -> Arrays:
    specs = [
        TensorSpec(name=name, shape=value.shape, dtype=computed(value.dtype.name))
        for name, value in zip(names, inputs, strict=True)
    ]
    module, _ = network.build(proto, specs)
    tensors = [torch.from_numpy(v.astype(s.dtype)) for v, s in zip(inputs, specs, strict=True)]
    with torch.no_grad():
        found = module(*tensors)
    return [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]


def attempt(case: Any, inputs: Arrays) -> Arrays:
    """The outputs of a case of the specification; inputs after the first are constants if they must be."""
    names = [value.name for value in case.model.graph.input]
    try:
        return run_torch(case.model, inputs, names)
    except StageError:
        if len(names) < 2:
            raise
    proto = onnx.ModelProto.FromString(case.model.SerializeToString())
    for name, value in zip(names[1:], inputs[1:], strict=True):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return run_torch(proto, inputs[:1], names[:1])


OTHERWISE = {
    "test_gather_negative_indices",  # computed indices from the end, into an embedding
    "test_top_k_same_values",  # which of equal values comes first
    "test_top_k_same_values_2d",
    "test_top_k_same_values_largest",
    # onnxruntime, which measures the source, rounds the length of the result, and the specification does not.
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
}


SLOW = frozenset({"attention", "averagepool", "image_decoder", "lppool", "maxpool"})
"""Modules whose cases take seconds to compute; pooling has tests of its own."""


def cases() -> Iterator[Any]:
    """The cases with which onnx tests backends, made as their modules are imported."""
    from onnx.backend.test.case import node

    for module in pkgutil.iter_modules(node.__path__):
        if module.name not in SLOW:
            importlib.import_module(f"{node.__name__}.{module.name}")
    yield from node._NodeTestCases


def test_operators_compute_what_the_specification_says() -> None:
    logging.getLogger("onnx").setLevel(logging.ERROR)
    passed: dict[str, int] = {}
    wrong, refused = [], []
    for case in cases():
        nodes = case.model.graph.node
        kinds = {node.op_type for node in nodes}
        data = [[v for v in part if isinstance(v, np.ndarray | np.generic)] for part in case.data_sets[0]]
        complete = [len(values) for values in data] == [len(part) for part in case.data_sets[0]]
        inputs, expected = ([np.asarray(value) for value in values] for values in data)
        real = complete and all(value.dtype.name in REAL for value in (*inputs, *expected))
        if not real or any(refusal(node.op_type, node.domain) for node in nodes):
            continue
        if case.name in OTHERWISE:
            continue
        try:
            found = attempt(case, inputs)
        except StageError:
            refused.append(case.name)
            continue
        close = len(found) >= 1 and all(
            np.allclose(a, b, rtol=1e-2 if b.dtype == np.float16 else 2e-4, atol=1e-4, equal_nan=True)
            and a.shape == b.shape
            for a, b in zip(found, expected, strict=False)
        )
        if not close:
            wrong.append(case.name)
        for kind in kinds:
            passed[kind] = passed.get(kind, 0) + close
    assert wrong == []
    assert sum(passed.values()) > 1500
    assert len(refused) < 85, refused
    # NonZero takes constants only, so that its result is one; the case of Not is of the first operator set.
    untested = {name for name in set(TABLE) | EXPANDED | STRUCTURAL if not passed.get(name)}
    assert untested <= {"Attention", "AveragePool", "If", "MaxPool", "NonZero", "Not"}


@pytest.mark.parametrize(
    "options",
    [
        "ceil_mode = 1, pads = [1, 1, 1, 1]",
        "ceil_mode = 1",
        'auto_pad = "SAME_UPPER"',
        'auto_pad = "SAME_LOWER"',
        'auto_pad = "VALID"',
        "pads = [0, 1, 1, 0]",
        "pads = [2, 0, 1, 2]",
    ],
)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool <count_include_pad = 1, "])
def test_pooling_computes_what_onnxruntime_does(kind: str, options: str) -> None:
    import onnxruntime

    name, _, more = kind.partition(" <")
    node = f"{name} <{more}kernel_shape = [3, 3], strides = [2, 2], {options}> (x)"
    proto = parsed(f"net (float[1, 2, 9, 8] x) => (float[1, 2, N, M] y) {{ y = {node} }}", {})
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = normal(1, 2, 9, 8)
    (expected,) = session.run(None, {"x": x})
    (found,) = run_torch(proto, [x], ["x"])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)


def parsed(text: str, weights: Mapping[str, NDArray[Any]], opset: int = 13) -> Any:
    graph = onnx.parser.parse_graph(text)
    for name, value in weights.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.4, shape).astype(np.float32)


def two_branches() -> Any:
    """A free batch, a reshape to a computed shape, a branch on a shape, two inputs and outputs."""
    text = """
    net (float[N, 3, 8, 8] image, int64[N, 4] "token.ids")
        => (float[N, 5] logits, float[N, 4] box, int64[N] "arg/max") {
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w, wb)
        r = Relu (c)
        shape = Shape (r)
        zero = Constant <value = int64 {0}> ()
        first = Gather (shape, zero)
        small = Less (first, four)
        picked = If (small) <then_branch = yes () => (a) { a = Sigmoid (r) },
                             else_branch = no () => (b) { b = Tanh (r) }>
        axes = Constant <value = int64[1] {0}> ()
        row = Unsqueeze (first, axes)
        rest = Constant <value = int64[1] {-1}> ()
        target = Concat <axis = 0> (row, rest)
        flat = Reshape (picked, target)
        e = Gather (table, "token.ids")
        m = ReduceMean <axes = [1], keepdims = 0> (e)
        joined = Concat <axis = 1> (flat, m)
        logits = Gemm <transB = 1> (joined, g, gb)
        box = MatMul (joined, h)
        "arg/max" = ArgMax <axis = 1, keepdims = 0> (logits)
    }
    """
    weights = {
        "w": normal(6, 3, 3, 3),
        "wb": normal(6),
        "four": np.array(4, np.int64),
        "table": normal(20, 7),
        "g": normal(5, 103),
        "gb": normal(5),
        "h": normal(103, 4, seed=1),
    }
    return parsed(text, weights)


def recurrent() -> Any:
    """Layers in both directions with states in and out, and a GRU of either form."""
    text = """
    net (float[6, 1, 4] x, float[2, 1, 5] h, float[2, 1, 5] c)
        => (float[6, 1, 7] y, float[2, 1, 5] hn, float[2, 1, 5] cn) {
        a, hn, cn = LSTM <hidden_size = 5, direction = "bidirectional"> (x, w, r, b, , h, c)
        t = Transpose <perm = [0, 2, 1, 3]> (a)
        shape = Constant <value = int64[3] {0, 0, -1}> ()
        s = Reshape (t, shape)
        d, dn = GRU <hidden_size = 7, linear_before_reset = 1> (s, gw, gr, gb)
        axes = Constant <value = int64[1] {1}> ()
        e = Squeeze (d, axes)
        f, fn = GRU <hidden_size = 7, direction = "reverse"> (e, kw, gr, gb)
        y = Squeeze (f, axes)
    }
    """
    weights = {
        "w": normal(2, 20, 4),
        "r": normal(2, 20, 5),
        "b": normal(2, 40),
        "gw": normal(1, 21, 10),
        "kw": normal(1, 21, 7),
        "gr": normal(1, 21, 7),
        "gb": normal(1, 42),
    }
    return parsed(text, weights, 14)


def save(proto: Any, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def save_apart(proto: Any, path: Path, weights: str) -> None:
    onnx.save(proto, str(path), save_as_external_data=True, location=weights, size_threshold=99)


def convert(path: Path, folder: Path, inputs: tuple[TensorSpec, ...] = ()) -> Model:
    folder.mkdir(exist_ok=True)
    model = Model(format="onnx", path=path, inputs=inputs or inspect(path).model.inputs)
    return OnnxToExportedProgram().run(model, Context(folder, None, lambda line: None))


def compare(path: Path, model: Model) -> float:
    """The lowest signal-to-noise ratio of the outputs, in dB, against onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    feed = {
        value.name: generator.normal(size=spec.shape).astype(np.float32)
        if spec.dtype == "float32"
        else generator.integers(0, 20, spec.shape).astype(spec.dtype)
        for value, spec in zip(session.get_inputs(), model.inputs, strict=True)
    }
    expected = session.run(None, feed)
    graph, _ = torch_program.plain_graph(model)
    with torch.no_grad():
        found = graph(*(torch.from_numpy(value) for value in feed.values()))
    found = found if isinstance(found, tuple) else (found,)
    assert [tuple(value.shape) for value in found] == [value.shape for value in expected]
    assert [spec.name for spec in model.outputs] == [value.name for value in session.get_outputs()]
    return min(snr_db(a, b.numpy()) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("make", [two_branches, recurrent])
def test_a_network_computes_what_onnxruntime_does(make: Callable[[], Any], tmp_path: Path) -> None:
    path = save(make(), tmp_path / "m.onnx")
    model = convert(path, tmp_path / "run")
    assert compare(path, model) > 100
    assert [spec.name for spec in model.inputs] == [v.name for v in make().graph.input]
    assert all(spec.shape[0] in (1, 2, 6) and None not in spec.shape for spec in model.inputs)


def test_layers_keep_the_names_of_their_nodes(tmp_path: Path) -> None:
    proto = two_branches()
    for node in proto.graph.node:
        node.name = {"Conv": "/stem/conv/Conv", "Gemm": "head.fc"}.get(node.op_type, "")
    model = convert(save(proto, tmp_path / "m.onnx"), tmp_path / "run")
    graph, _ = torch_program.plain_graph(model)
    names = [layer.name for layer in torch_layers.layers(graph)]
    assert names == ["/stem/conv/Conv", "head_fc", "box"]


def test_half_precision_and_nodes_out_of_order(tmp_path: Path) -> None:
    """onnxruntime's own conversion to float16 writes nodes after those that read them."""
    text = "net (float16[1, 3, 6, 6] x) => (float[1, 4, 4, 4] y) { y = Cast <to = 1> (c)  c = Conv (x, w) }"
    proto = onnx.ModelProto()
    graph = onnx.parser.parse_graph(text)
    graph.initializer.append(onnx.numpy_helper.from_array(normal(4, 3, 3, 3).astype(np.float16), "w"))
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    model = convert(save(proto, tmp_path / "m.onnx"), tmp_path / "run")
    assert [spec.dtype for spec in model.inputs] == ["float32"]
    graph, _ = torch_program.plain_graph(model)
    x = torch.from_numpy(normal(1, 3, 6, 6))
    weight = torch.from_numpy(normal(4, 3, 3, 3).astype(np.float16).astype(np.float32))
    assert snr_db(torch.conv2d(x, weight).numpy(), graph(x).numpy()) > 100


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        (
            "y = Det (x)",
            "node 'y' (Det) cannot be converted to PyTorch: this operator is not carried",
            "only onnx",
        ),
        (
            "y = NonMaxSuppression (x, x)",
            "node 'y' (NonMaxSuppression) cannot be converted to PyTorch: this operator is not carried",
            "only onnx",
        ),
        ("y = custom.Thing (x)", "the operator set 'custom' is not carried", "standard operators"),
        (
            "q = QuantizeLinear (x, s)  y = DequantizeLinear (q, s)",
            "node 'q' (QuantizeLinear) cannot be converted to PyTorch: the model is quantized already",
            "start from the float model",
        ),
    ],
)
def test_operators_are_refused_in_the_plan(
    text: str, message: str, fix: str, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    proto = parsed(f"net (float[1, 3, 3] x) => (float[1, 3, 3] y) {{ {text} }}", {"s": np.float32(0.1)[()]})
    path = save(proto, tmp_path / "m.onnx")
    with pytest.raises(UsageError) as caught:
        OnnxToExportedProgram.check_source(inspect(path).model)
    assert message in caught.value.message
    assert fix in caught.value.fix
    np.savez(tmp_path / "x.npz", x=normal(4, 3, 3))
    (tmp_path / "r.yaml").write_text(
        "version: 1\nname: r\nmodel: {path: m.onnx}\ndata: {evaluation: {uses: npz, with: {path: x.npz, "
        "label: null}}}\noptimize: {float: {}}\nformats: [onnx, torchscript]\n"
    )
    plan = make_plan(load_recipe(tmp_path / "r.yaml"))
    assert [(branch.name, branch.names) for branch in plan.branches] == [("float.onnx", ())]
    assert [(each.format, message in each.reason) for each in plan.impossible] == [("torchscript", True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s = Cast <to = 7> (x)  y = ConstantOfShape (s)", "its input 's' depends on the values"),
        (
            "b = Greater (x, z)  a = Squeeze (b)  y = If (a) <then_branch = t () => (p) { p = Exp (x) }, "
            "else_branch = e () => (q) { q = Neg (x) }>",
            "node 'y' (If) cannot be converted: its condition 'a' depends on the values",
        ),
        ("y = Conv (x, w)", "node 'y' (Conv) does not run on these inputs"),
        ("y = Add (x, nothing)", "node 'y' (Add) reads 'nothing', which no node computes"),
    ],
)
def test_nodes_are_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    weights = {"z": np.zeros(1, np.float32), "w": normal(2, 2, 3)}
    path = save(parsed(f"net (float[1] x) => (float[1] y) {{ {text} }}", weights), tmp_path / "m.onnx")
    with pytest.raises(StageError, match=None) as caught:
        convert(path, tmp_path / "run")
    assert message in str(caught.value)
    assert caught.value.fix


def test_inputs_must_fit_the_file(tmp_path: Path) -> None:
    path = save(two_branches(), tmp_path / "m.onnx")
    ids = TensorSpec(name="token.ids", shape=(1, 4), dtype="int64")
    with pytest.raises(
        StageError, match=r"described as \[1, 3, 9, 8\], but the file declares \[None, 3, 8, 8\]"
    ):
        convert(path, tmp_path / "run", (TensorSpec(name="image", shape=(1, 3, 9, 8)), ids))
    with pytest.raises(StageError, match="takes 2 inputs, but 1 are described"):
        convert(path, tmp_path / "run", (ids,))


def test_free_axes_are_asked_for_and_take_the_size_of_the_recipe(tmp_path: Path) -> None:
    path = save(free_sizes(), tmp_path / "m.onnx")
    with pytest.raises(StageError, match=r"'image' has the shape \[1, 3, \?, \?\]") as caught:
        convert(path, tmp_path / "free")
    assert "{name: image, shape: [1, 3, 96, 96]}; for several sizes" in (caught.value.fix or "")
    for size in (6, 8):
        inputs = (TensorSpec(name="image", shape=(1, 3, size, size)),)
        assert convert(path, tmp_path / str(size), inputs).outputs[0].shape == (1, 4, size, size)


def test_the_layout_of_an_image_is_that_of_the_nodes_that_read_it(tmp_path: Path) -> None:
    def layout(text: str) -> str | None:
        proto = parsed(f"net (float[1, 6, 6, 6] x) => (float[N] y) {{ {text} }}", {"w": normal(6, 6, 3, 3)})
        return header.read(save(proto, tmp_path / "m.onnx")).model.inputs[0].layout

    assert layout("a = Sub (x, x)  b = Mul (a, a)  y = Conv (b, w)") == "NCHW"
    assert layout("a = Transpose <perm = [0, 3, 1, 2]> (x)  y = Conv (a, w)") == "NHWC"
    assert layout("a = Transpose <perm = [0, 2, 1, 3]> (x)  y = Conv (a, w)") is None
    assert layout("y = MatMul (x, w)") is None


def test_quantized_files_are_not_converted_further(tmp_path: Path) -> None:
    """A chain that quantizes ONNX and then converts it would lose the quantization."""
    save(two_branches(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", image=normal(4, 3, 8, 8), ids=np.zeros((4, 4), np.int64))
    (tmp_path / "r.yaml").write_text(
        "version: 1\nname: r\nmodel: {path: m.onnx}\ndata: {evaluation: {uses: npz, with: {path: x.npz, "
        "inputs: {image: image, token.ids: ids}, label: null}}}\n"
        "optimize: {half: {quantize: float16}, four: {quantize: int4}}\n"
        "formats: [onnx, tflite, torchscript]\n"
    )
    plan = make_plan(load_recipe(tmp_path / "r.yaml"))
    chains = {branch.name: branch.names for branch in plan.branches}
    assert chains["half.onnx"] == chains["four.onnx"] == ("quantize_weights_onnx",)
    assert chains["half.tflite"][0] == "onnx_to_exported_program"
    assert {each.format for each in plan.impossible} == {"torchscript"}


def test_optimize_with_weights_in_another_file(tmp_path: Path) -> None:
    """The whole command: a source with external data, free batch, two inputs and outputs."""
    proto = two_branches()
    del proto.graph.output[2]  # the class of a network without training is decided by the last bit
    save_apart(proto, tmp_path / "m.onnx", "big weights.bin")
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        image=generator.normal(size=(40, 3, 8, 8)).astype(np.float32),
        ids=generator.integers(0, 20, (40, 4)),
    )
    data = "{uses: npz, with: {path: x.npz, inputs: {image: image, token.ids: ids}, label: null}}"
    (tmp_path / "r.yaml").write_text(
        f"version: 1\nname: r\nmodel: {{path: m.onnx}}\ndata:\n  calibration: {data}\n  evaluation: {data}\n"
        "  allow_leak: true\noptimize: {half: {quantize: float16}, dyn: {quantize: dynamic_int8}}\n"
        "latency: {min_runs: 3, min_seconds: 0}\nformats: [onnx]\n"
    )
    command = [*EDGEOPT, "optimize", "r.yaml", "--out", "out", "--store", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert done.returncode == 0, [row["reason"] for row in report["results"]]
    snr = {
        f"{row['variant']}.{row['format']}": row["measurements"]["fidelity_snr_db"]["value"]
        for row in report["results"]
    }
    assert snr.keys() == {"float.onnx", "half.onnx", "dyn.onnx"}
    assert snr["float.onnx"] == 200  # bit-identical
    assert min(snr.values()) > 25
    models = tmp_path / "out" / "models"
    assert (models / "big weights.bin").read_bytes() == (tmp_path / "big weights.bin").read_bytes()
    quantized = onnx.load(str(models / "dyn.onnx"), load_external_data=False)
    assert not any(tensor.external_data for tensor in quantized.graph.initializer)


def test_missing_and_distant_weights_are_named(tmp_path: Path) -> None:
    save_apart(two_branches(), tmp_path / "m.onnx", "w.bin")
    assert [file.name for file in header.files(tmp_path / "m.onnx")] == ["m.onnx", "w.bin"]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(UsageError, match=r"has weights in w.bin, which is missing"):
        inspect(tmp_path / "m.onnx")


def free_sizes() -> Any:
    text = """
    net (float[batch, 3, height, width] image) => (float[batch, 4, height, width] map, float[batch, 4] mean) {
        c = Conv <pads = [1, 1, 1, 1]> (image, w, b)
        r = Relu (c)
        map = Conv (r, v)
        g = GlobalAveragePool (map)
        mean = Flatten (g)
    }
    """
    return parsed(text, {"w": normal(8, 3, 3, 3), "b": normal(8), "v": normal(4, 8, 1, 1)})


def test_the_recipe_of_the_documents_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "optimizing.md").read_text("utf-8")
    (recipe,) = re.findall(r"^```yaml\n(name: scorer\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "scorer.yaml").write_text(recipe)
    save(free_sizes(), tmp_path / "scorer.onnx")
    for seed, name in enumerate(("calibration", "evaluation")):
        np.savez(tmp_path / f"{name}.npz", x=normal(24, 3, 32, 32, seed=seed))
    plan = make_plan(load_recipe(tmp_path / "scorer.yaml"))
    assert {branch.name: branch.names[:1] for branch in plan.branches} == {
        "float.onnx": (),
        "float.tflite": ("onnx_to_exported_program",),
        "int8.onnx": ("quantize_onnx",),
        "int8.tflite": ("onnx_to_exported_program",),
    }
    command = [
        *EDGEOPT,
        "optimize",
        "scorer.yaml",
        "--set",
        "formats=[onnx]",
        "--out",
        "out",
        "--store",
        "store",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    snr = {row["variant"]: row["measurements"]["fidelity_snr_db"]["value"] for row in report["results"]}
    assert snr["float"] == 200
    assert snr["int8"] > 30
    made = onnx.load(str(tmp_path / "out" / "models" / "int8.onnx")).graph
    sizes = [[each.dim_value for each in v.type.tensor_type.shape.dim] for v in (*made.input, *made.output)]
    assert sizes == [[1, 3, 32, 32], [1, 4, 32, 32], [1, 4]]


def test_a_starter_recipe_runs_once_its_data_are_there(tmp_path: Path) -> None:
    save(two_branches(), tmp_path / "m.onnx")
    text = starter(Given(tmp_path / "m.onnx"), tmp_path / "m.yaml")
    (tmp_path / "m.yaml").write_text(text)
    ids = np.zeros((4, 4), np.int64)
    for name, seed in (("calibration", 0), ("evaluation", 1)):
        np.savez(tmp_path / f"{name}.npz", image=normal(4, 3, 8, 8, seed=seed), **{"token.ids": ids})
    recipe = load_recipe(tmp_path / "m.yaml")
    plan = make_plan(recipe)
    assert not plan.impossible
    assert len(plan.branches) == 8
    assert "top1" not in [metric.name for metric in recipe.metrics]
    # The suggestions are valid, too.
    lines = [re.sub(r"^# (?=tasks:|metric:)", "", line) for line in text.splitlines()]
    labels = "label: {logits: y, box: y, arg/max: y}"
    (tmp_path / "m.yaml").write_text("\n".join(lines).replace("label: null", labels))
    names = [metric.name for metric in load_recipe(tmp_path / "m.yaml").metrics]
    assert names[:3] == ["top1_0", "top1_1", "mae_2"]
