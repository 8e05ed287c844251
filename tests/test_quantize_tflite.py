"""Float TFLite to integers: accuracy, size, types in the file, calibrators, layers apart, and the search."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.config.files import content_digest
from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import WEIGHTED, read_signature
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.files.slimming import slimmed
from edgeopt.formats.tflite.graph import layers as tflite_layers
from edgeopt.formats.tflite.quantize import quantizer as tflite_quantizer
from edgeopt.model import Model
from edgeopt.plugin import Dataset
from edgeopt.stages._search import Budget
from edgeopt.stages.quantize_tflite import QuantizeTflite
from float_tflite import (
    Noise,
    Stored,
    Told,
    agreement,
    changed,
    context,
    inputs_of,
    outputs,
    python,
    real_model,
    snr_db,
    toy_model,
    types,
)

if any(importlib.util.find_spec(name) is None for name in ("ai_edge_quantizer", "tensorflow", "tf_keras")):
    pytest.skip("needs the extra 'keras'", allow_module_level=True)

KWS_LAYERS = [
    "conv2d", "depthwise_conv2d", "conv2d_1", "depthwise_conv2d_1", "conv2d_2", "depthwise_conv2d_2",
    "conv2d_3", "depthwise_conv2d_3", "conv2d_4", "dense",
]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model("toy", tmp_path_factory)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model("volume", tmp_path_factory)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model("loop", tmp_path_factory)


@pytest.fixture(scope="module")
def kws(needs_real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return real_model("kws_ref_model", needs_real_data, tmp_path_factory)


@pytest.fixture
def calibration(needs_real_data: Path) -> Stored:
    return Stored(file=needs_real_data / "kws" / "calibration100.npz")


class Judged:
    """A keyword file compared with the float one, on the evaluation data."""

    def __init__(self, kws: Model, result: Model, data: Path) -> None:
        kept = Stored(file=data / "kws" / "evaluation400.npz")
        labels = np.array([sample.label for sample in kept.samples()])
        before, after = outputs(kws.path, inputs_of(kept)), outputs(result.path, inputs_of(kept))
        self.drop = float(np.mean(before.argmax(1) == labels) - np.mean(after.argmax(1) == labels))
        self.agreement = agreement(before, after)
        self.snr_db = snr_db(before, after)
        self.bytes = result.path.stat().st_size
        self.slim_bytes = len(slimmed(load(result.path)))


@pytest.mark.parametrize("io", ["float32", "int8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_toy_is_int8_and_close(tmp_path: Path, toy: Model, io: Any, per_channel: bool) -> None:
    stage = QuantizeTflite(io=io, per_channel=per_channel)
    result = stage.run(toy, context(tmp_path / "out", Noise()))
    samples = inputs_of(Noise(count=16))
    assert snr_db(outputs(toy.path, samples), outputs(result.path, samples)) > 30
    assert [spec.dtype for spec in (*result.inputs, *result.outputs)] == [io, io]
    assert [spec.name for spec in (*result.inputs, *result.outputs)] == ["image", "classes"]
    assert result.inputs[0].layout == "NHWC"
    assert (result.inputs[0].scale is not None) == (io == "int8")
    graph = read_signature(result.path).graph
    ends = 1 if io == "float32" else 0
    assert (graph.count("QUANTIZE"), graph.count("DEQUANTIZE")) == (ends, ends)
    assert graph.float_weighted() == []
    inner = [op for op in graph.operations if op.kind not in {"QUANTIZE", "DEQUANTIZE"}]
    assert {tensor.dtype for op in inner for tensor in op.outputs} <= {"int8"}


def test_float_file_has_float_weights(toy: Model) -> None:
    kinds = [line.split()[0] for line in read_signature(toy.path).graph.float_weighted()]
    assert kinds == ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]


def test_layers_are_called_as_in_keras(kws: Model, toy: Model) -> None:
    layers = tflite_layers.read(kws.path)
    assert [layer.name for layer in layers] == KWS_LAYERS
    assert [layer.name for layer in tflite_layers.read(toy.path)] == [
        "conv2d",
        "depthwise_conv2d",
        "classes",
    ]
    assert sum(layer.elements for layer in layers) == 22_016
    assert [step.kind for step in layers[-2].followers] == ["AVERAGE_POOL_2D"]
    assert [step.kind for step in layers[-1].followers] == ["SOFTMAX"]


@pytest.mark.parametrize("scheme", ["int8", "mixed"])
def test_a_layer_without_kernel_stays_float_with_a_note(tmp_path: Path, volume: Model, scheme: Any) -> None:
    """The library silently skips layers that its policy does not cover."""
    data, notes = Noise(shape=(4, 8, 8, 1)), list[str]()
    noted = context(tmp_path / "a", data)._replace(note=notes.append)
    result = QuantizeTflite(scheme=scheme).run(volume, noted)
    assert "layers that stay in float32, without a quantized kernel: CONV_3D solid (432 B)" in notes
    assert list(types(result.path).values()) == [("float32", "float32"), ("int8", "int8")]
    samples = inputs_of(data)
    assert snr_db(outputs(volume.path, samples), outputs(result.path, samples)) > 30
    message = f"1 layers do not match the scheme {scheme}: CONV_3D solid has float32 weights"
    with pytest.raises(StageError, match=message):
        QuantizeTflite(scheme=scheme, layers={"solid": "int8"}).run(volume, context(tmp_path / "b", data))
    with pytest.raises(StageError, match="no layer has a quantized kernel: CONV_3D solid"):
        tflite_quantizer.without_kernel(tflite_layers.read(volume.path)[:1], {"solid": ""})


@pytest.mark.parametrize("calibrator", ["minmax", "mse"])
def test_a_loop_stays_float(tmp_path: Path, loop: Model, calibrator: Any) -> None:
    data = Noise(shape=(8, 4))
    whole = QuantizeTflite().run(loop, context(tmp_path / "a", data))
    # The weights are int8, and the values of the loop float.
    assert types(whole.path)["recurrent/lstm_cell"] == ("int8", "float32")
    assert snr_db(outputs(loop.path, inputs_of(data)), outputs(whole.path, inputs_of(data))) > 26
    stage = QuantizeTflite(io="int8", calibrator=calibrator, layers={"recurrent*": "float32"})
    result = stage.run(loop, context(tmp_path / "b", data))
    assert types(result.path) == {
        "up": ("int8", "int8"),
        "classes": ("int8", "int8"),
        "recurrent/lstm_cell": ("float32", "float32"),
        "recurrent/lstm_cell:2": ("float32", "float32"),
    }
    samples = inputs_of(data)
    assert snr_db(outputs(loop.path, samples), outputs(result.path, samples)) > 28


def test_a_layer_that_is_skipped_is_refused(
    tmp_path: Path, toy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tflite_quantizer.static_recipe

    def without_depthwise(*arguments: Any, **options: Any) -> Any:
        recipe = original(*arguments, **options)
        return [*recipe, recipe[-1] | {"operation": "DEPTHWISE_CONV_2D", "algorithm_key": "no_quantize"}]

    monkeypatch.setattr(tflite_quantizer, "static_recipe", without_depthwise)
    with pytest.raises(StageError, match="DEPTHWISE_CONV_2D depthwise_conv2d has float32"):
        QuantizeTflite().run(toy, context(tmp_path / "out", Noise()))


def test_int8_file_is_not_quantized_again(tmp_path: Path, toy: Model) -> None:
    for io in ("int8", "float32"):
        once = QuantizeTflite(io=io).run(toy, context(tmp_path / io, Noise()))
        with pytest.raises(StageError, match="already quantized"):
            QuantizeTflite().run(once, context(tmp_path / f"{io}-again", Noise()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs calibration data"),
        (Noise(count=0), "calibration data are empty"),
        (Noise(broken=True), "sample 0 contains NaN"),
        (Noise(shape=(8, 8, 3)), r"has the shape \[1, 8, 8, 3\]"),
    ],
)
@pytest.mark.parametrize("calibrator", ["minmax", "mse"])
def test_unusable_calibration_is_explained(
    tmp_path: Path, toy: Model, data: Dataset | None, message: str, calibrator: Any
) -> None:
    with pytest.raises(StageError, match=message):
        QuantizeTflite(calibrator=calibrator).run(toy, context(tmp_path / "out", data))


@pytest.mark.parametrize("calibrator", ["minmax", "entropy"])
def test_one_sample_is_enough_and_remarked(tmp_path: Path, toy: Model, calibrator: Any) -> None:
    told = Told()
    stage = QuantizeTflite(calibrator=calibrator)
    result = stage.run(toy, told.context(tmp_path / "out", Noise(count=1)))
    assert set(types(result.path).values()) == {("int8", "int8")}
    assert told.notes == ["only 1 calibration sample: values outside their range will be clipped"]


@pytest.mark.parametrize("calibrator", ["minmax", "percentile"])
def test_a_model_that_computes_nan_is_refused(tmp_path: Path, toy: Model, calibrator: Any) -> None:
    def endless(values: np.ndarray, place: int) -> np.ndarray:
        return values * (np.inf if place == 1 else 1)

    broken = changed(toy, tmp_path / "broken.tflite", "CONV_2D", 0, endless)
    with pytest.raises(StageError, match="computes NaN or infinite values in"):
        QuantizeTflite(calibrator=calibrator).run(broken, context(tmp_path / "out", Noise()))


def test_not_a_tflite_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"not a model at all")
    with pytest.raises(StageError, match=r"x\.tflite is not a TFLite model"):
        read_signature(path)


def test_a_slimmed_file_is_refused(tmp_path: Path, toy: Model) -> None:
    path = tmp_path / "slim.tflite"
    path.write_bytes(slimmed(load(toy.path)))
    with pytest.raises(StageError, match="cannot be distinguished") as refused:
        QuantizeTflite().run(toy.model_copy(update={"path": path}), context(tmp_path / "out", Noise()))
    assert refused.value.fix == "quantize the file before slimming it"


@pytest.mark.parametrize(
    ("scheme", "io"), [("int8", "int16"), ("int8x16", "int8"), ("mixed", "int16"), ("int8", "float16")]
)
def test_inputs_that_do_not_fit_the_scheme_are_refused(scheme: Any, io: Any) -> None:
    with pytest.raises(ValidationError, match=f"not {io}|'float32', 'int8' or 'int16'"):
        QuantizeTflite(scheme=scheme, io=io)


RUN = """
import resource, sys
from pathlib import Path
from edgeopt.model import Model
sys.path.insert(0, sys.argv[5])
from float_tflite import Noise, context
from edgeopt.config.files import content_digest
from edgeopt.stages.quantize_tflite import QuantizeTflite
model = Model.model_validate_json(sys.argv[1])
stage = QuantizeTflite(calibrator=sys.argv[4])
result = stage.run(model, context(Path(sys.argv[2]), Noise(count=int(sys.argv[3]))))
assert "tensorflow" not in sys.modules
print(content_digest(result.path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("calibrator", ["minmax", "mse"])
def test_deterministic_across_processes_and_memory_does_not_grow(
    tmp_path: Path, toy: Model, calibrator: Any
) -> None:
    here = Path(__file__).parent
    runs = [
        python(RUN, toy.model_dump_json(), tmp_path / str(seed), count, calibrator, here, seed=seed).split()
        for seed, count in ((1, 256), (3, 4096))
    ]
    assert int(runs[1][1]) <= 1.2 * int(runs[0][1])
    stage = QuantizeTflite(calibrator=calibrator)
    assert content_digest(stage.run(toy, context(tmp_path / "here", Noise(count=256))).path) == runs[0][0]


@pytest.mark.parametrize(
    ("calibrator", "least_snr"), [("minmax", 26), ("percentile", 29), ("entropy", 25), ("mse", 29)]
)
def test_every_calibrator_keeps_the_keyword_model(
    tmp_path: Path, kws: Model, calibration: Stored, real_data: Path, calibrator: Any, least_snr: float
) -> None:
    result = QuantizeTflite(calibrator=calibrator).run(kws, context(tmp_path / "out", calibration))
    assert types(result.path) == dict.fromkeys(KWS_LAYERS, ("int8", "int8"))
    judged = Judged(kws, result, real_data)
    assert judged.drop <= 0.01
    assert judged.agreement >= 0.97
    assert judged.snr_db >= least_snr
    assert judged.bytes <= 48_480
    if calibrator != "minmax":
        widest = QuantizeTflite().run(kws, context(tmp_path / "minmax", calibration))
        assert _scales(result.path)[1] < 0.9 * _scales(widest.path)[1]


def _scales(path: Path) -> list[float]:
    """Quantization steps of the layer outputs."""
    (graph,) = load(path).model.tables("subgraphs")
    tensors = graph.tables("tensors")
    given = [tensors[o.numbers("outputs")[0]].table("quantization") for o in graph.tables("operators")]
    vectors = [table.vector("scale") for table in given if table is not None]
    return [float(np.frombuffer(vector.data, np.float32)[0]) for vector in vectors if vector is not None]


def test_per_tensor_and_slim_is_smallest(
    tmp_path: Path, kws: Model, calibration: Stored, real_data: Path
) -> None:
    stage = QuantizeTflite(per_channel=False, io="int8")
    judged = Judged(kws, stage.run(kws, context(tmp_path / "out", calibration)), real_data)
    assert judged.drop <= 0.01
    assert judged.agreement >= 0.97
    assert judged.slim_bytes <= 28_000


@pytest.mark.parametrize("io", ["float32", "int16"])
def test_int8x16_has_16_bit_activations(
    tmp_path: Path, kws: Model, calibration: Stored, real_data: Path, io: Any
) -> None:
    stage = QuantizeTflite(scheme="int8x16", io=io)
    result = stage.run(kws, context(tmp_path / "out", calibration))
    assert types(result.path) == dict.fromkeys(KWS_LAYERS, ("int8", "int16"))
    assert [spec.dtype for spec in (*result.inputs, *result.outputs)] == [io, io]
    convolutions = [op for op in read_signature(result.path).graph.operations if op.kind in WEIGHTED]
    assert {op.inputs[2].dtype for op in convolutions} == {"int64"}
    if io == "int16":
        return  # the kernels are slow, and identical
    judged = Judged(kws, result, real_data)
    assert judged.drop <= 0.0025
    assert judged.agreement >= 0.99
    assert judged.snr_db >= 34
    assert judged.bytes <= 51_000


def test_layers_apart_get_their_precision(tmp_path: Path, kws: Model, calibration: Stored) -> None:
    stage = QuantizeTflite(layers={"depthwise_conv2d*": "float32", "conv2d_2": "int16", "*_3": "int8"})
    result = stage.run(kws, context(tmp_path / "out", calibration))
    expected = dict.fromkeys(KWS_LAYERS, ("int8", "int8"))
    expected |= dict.fromkeys([f"depthwise_conv2d{n}" for n in ("", "_1", "_2")], ("float32", "float32"))
    expected |= {"conv2d_2": ("int8", "int16")}
    assert types(result.path) == expected
    samples = inputs_of(calibration)
    assert snr_db(outputs(kws.path, samples), outputs(result.path, samples)) > 24


def test_a_layer_of_4_bits_takes_half_the_bytes(tmp_path: Path, kws: Model, calibration: Stored) -> None:
    whole = QuantizeTflite().run(kws, context(tmp_path / "whole", calibration))
    halved = QuantizeTflite(layers={"conv2d_3": "int4"}).run(kws, context(tmp_path / "out", calibration))
    expected = dict.fromkeys(KWS_LAYERS, ("int8", "int8")) | {"conv2d_3": ("int4", "int8")}
    assert types(halved.path) == expected
    weights = next(layer for layer in tflite_layers.read(kws.path) if layer.name == "conv2d_3").elements
    saved = whole.path.stat().st_size - halved.path.stat().st_size
    assert abs(saved - weights / 2) < 64
    samples = inputs_of(calibration)
    assert snr_db(outputs(kws.path, samples), outputs(halved.path, samples)) > 15
    with pytest.raises(
        StageError, match="depthwise_conv2d cannot have int4 weights: no kernel supports them"
    ):
        QuantizeTflite(layers={"depthwise_conv2d": "int4"}).run(kws, context(tmp_path / "no", calibration))


def test_all_in_float_is_the_float_model(tmp_path: Path, kws: Model, calibration: Stored) -> None:
    told = Told()
    result = QuantizeTflite(layers={"*": "float32"}).run(kws, told.context(tmp_path / "out", calibration))
    samples = inputs_of(calibration)
    assert np.array_equal(outputs(kws.path, samples), outputs(result.path, samples))
    assert told.notes == ["operators without weights that stay in float: AVERAGE_POOL_2D, SOFTMAX"]


def test_names_in_the_file_fit_where_no_name_of_a_layer_does(
    tmp_path: Path, kws: Model, calibration: Stored
) -> None:
    stage = QuantizeTflite(layers={"*FusedBatchNormV3*": "float32", "functional_1/dense*": "float32"})
    result = stage.run(kws, context(tmp_path / "out", calibration))
    assert Counter(types(result.path).values()) == {("float32", "float32"): 10}


def test_a_pattern_that_fits_nothing_names_the_nearest(
    tmp_path: Path, kws: Model, calibration: Stored
) -> None:
    with pytest.raises(StageError, match="no layer is called 'conv2d_44'") as refused:
        QuantizeTflite(layers={"conv2d_44": "float32"}).run(kws, context(tmp_path / "out", calibration))
    assert "10 names, such as conv2d_4, " in refused.value.fix


def _hostile(kws: Model, path: Path) -> Model:
    """One dead channel of the third convolution has weights 200 times larger than all others.

    Its inputs are never negative, so the channel is always zero after the ReLU; but the one step that all
    weights of the layer share is now 200 times too coarse.
    """

    def dead(values: np.ndarray, place: int) -> np.ndarray:
        values[0] = -200 * np.abs(values).max() if place == 1 else 0
        return values

    return changed(kws, path, "CONV_2D", 2, dead)


def test_the_search_finds_the_hostile_layer(
    tmp_path: Path, kws: Model, calibration: Stored, real_data: Path
) -> None:
    hostile = _hostile(kws, tmp_path / "hostile.tflite")
    lost = QuantizeTflite(per_channel=False).run(hostile, context(tmp_path / "lost", calibration))
    assert Judged(hostile, lost, real_data).drop > 0.5
    told = Told()
    stage = QuantizeTflite(per_channel=False, max_drop=0.005, budget=Budget(trials=20))
    result = stage.run(hostile, told.context(tmp_path / "out", calibration))
    apart = [name for name, found in types(result.path).items() if found == ("float32", "float32")]
    assert apart == ["conv2d_2"]
    judged = Judged(hostile, result, real_data)
    assert judged.drop <= 0.005
    assert judged.agreement >= 0.97
    assert judged.bytes - lost.path.stat().st_size < 3 * 64 * 64 + 1000
    chosen = [trial for trial in told.trials if trial.status == "chosen"]
    assert [trial.raised for trial in chosen] == [("conv2d_2",)]
    assert chosen[0].size_bytes == judged.bytes
    assert 2 <= len(told.trials) <= 20
    assert told.notes[0].startswith("max_drop 0.005 holds")


def test_mixed_is_int8_where_that_holds(tmp_path: Path, kws: Model, calibration: Stored) -> None:
    told = Told()
    result = QuantizeTflite(scheme="mixed").run(kws, told.context(tmp_path / "out", calibration))
    assert set(types(result.path).values()) == {("int8", "int8")}
    assert [trial.raised for trial in told.trials] == [()]
    assert told.notes[0].startswith("max_drop 0.01 holds")


@pytest.mark.slow
def test_resnet8_loses_less_than_a_point(
    tmp_path: Path, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = real_model("resnet8.h5", real_data, tmp_path_factory)
    data = Stored(file=real_data / "cifar10" / "calibration512.npz")
    result = QuantizeTflite().run(source, context(tmp_path / "out", data))
    kept = Stored(file=real_data / "cifar10" / "test446.npz")
    labels = np.array([sample.label for sample in kept.samples()])
    before, after = outputs(source.path, inputs_of(kept)), outputs(result.path, inputs_of(kept))
    assert np.mean(before.argmax(1) == labels) - np.mean(after.argmax(1) == labels) <= 0.007
    assert agreement(before, after) > 0.96
    assert snr_db(before, after) > 20
    assert result.path.stat().st_size <= 95_568


@pytest.mark.slow
@pytest.mark.usefixtures("real_data")
def test_resnet20_keeps_27_db(tmp_path: Path) -> None:
    if importlib.util.find_spec("litert_torch") is None:
        pytest.skip("needs the extra 'torch'")
    command = [sys.executable, "-c", "from edgeopt.cli import main; main()", "optimize", "resnet20-cifar10"]
    command += [
        "--set",
        "formats=[tflite]",
        "--out",
        str(tmp_path / "out"),
        "--store",
        str(tmp_path / "store"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    (int8,) = [row["measurements"] for row in rows if row["variant"] == "int8"]
    assert int8["fidelity_snr_db"]["value"] >= 27
    assert int8["top1_drop"]["value"] <= 0.007


PADDING = """
import sys, numpy as np, tensorflow as tf

class Pooling(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 16, 16, 3), tf.float32)])
    def __call__(self, x):
        kernel = tf.constant(np.random.default_rng(0).normal(0, 0.3, (3, 3, 3, 4)).astype(np.float32))
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        y = tf.pad(y, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
        return tf.nn.max_pool2d(y, 3, 2, "VALID")

module = Pooling()
function = module.__call__.get_concrete_function()
open(sys.argv[1], "wb").write(tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert())
"""


@pytest.mark.parametrize("calibrator", ["minmax", "mse"])
def test_padding_with_minus_infinity_is_no_part_of_a_range(tmp_path: Path, calibrator: Any) -> None:
    """As converters pad for a maximum."""
    path = tmp_path / "float.tflite"
    python(PADDING, path)
    told = Told()
    model = Model(format="tflite", path=path, inputs=read_signature(path, "NHWC").inputs)
    made = QuantizeTflite(calibrator=calibrator).run(model, told.context(tmp_path / "out", Noise(count=8)))
    samples = inputs_of(Noise(count=16))
    assert snr_db(outputs(path, samples), outputs(made.path, samples)) > 30
    assert len(told.notes) == len(set(told.notes))
