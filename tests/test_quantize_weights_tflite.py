"""Float TFLite to quantized weights: types in the file, accuracy, bytes, missing kernels, and the search."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.files.slimming import slimmed
from edgeopt.formats.tflite.quantize import quantizer as tflite_quantizer
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.stages.quantize_weights_tflite import QuantizeWeightsTflite
from edgeopt.stages.slim_tflite import SlimTflite
from float_tflite import (
    Noise,
    Stored,
    Told,
    agreement,
    context,
    inputs_of,
    outputs,
    real_model,
    snr_db,
    toy_model,
    types,
)

if any(importlib.util.find_spec(name) is None for name in ("ai_edge_quantizer", "tensorflow", "tf_keras")):
    pytest.skip("needs the extra 'keras'", allow_module_level=True)

KWS_LAYERS = 10


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model("toy", tmp_path_factory)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model("volume", tmp_path_factory)


@pytest.fixture(scope="module")
def kws(needs_real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return real_model("kws_ref_model", needs_real_data, tmp_path_factory)


@pytest.mark.parametrize(
    ("options", "weight", "most_drop", "least_agreement", "least_snr", "most_bytes", "most_slim_bytes"),
    [
        ({"scheme": "dynamic_int8"}, "int8", 0.0025, 0.98, 29, 40_100, 29_800),
        ({"scheme": "float16"}, "float16", 0.0, 0.995, 60, 56_600, 49_100),
        ({"scheme": "int4"}, "int4", 0.015, 0.92, 13, 30_200, 19_000),
        ({"scheme": "int4", "compute": "float32"}, "int4", 0.015, 0.92, 13, 30_900, 19_300),
    ],
    ids=["dynamic_int8", "float16", "int4", "int4-unpacked"],
)
def test_keyword_model(
    tmp_path: Path,
    kws: Model,
    real_data: Path,
    options: dict[str, Any],
    weight: str,
    most_drop: float,
    least_agreement: float,
    least_snr: float,
    most_bytes: int,
    most_slim_bytes: int,
) -> None:
    result = QuantizeWeightsTflite(**options).run(kws, context(tmp_path / "out", None))
    found = types(result.path)
    assert len(found) == KWS_LAYERS
    assert set(found.values()) == {(weight, "float32")}
    assert [spec.dtype for spec in (*result.inputs, *result.outputs)] == ["float32", "float32"]
    assert [spec.name for spec in (*result.inputs, *result.outputs)] == ["input_1", "dense"]
    kept = Stored(file=real_data / "kws" / "evaluation400.npz")
    samples, labels = inputs_of(kept), np.array([sample.label for sample in kept.samples()])
    before, after = outputs(kws.path, samples), outputs(result.path, samples)
    assert np.mean(before.argmax(1) == labels) - np.mean(after.argmax(1) == labels) <= most_drop
    assert agreement(before, after) >= least_agreement
    assert snr_db(before, after) >= least_snr
    assert result.path.stat().st_size <= most_bytes
    (tmp_path / "slim").mkdir()
    slim = SlimTflite().run(result, Context(tmp_path / "slim", None, lambda line: None))
    assert slim.path.stat().st_size <= most_slim_bytes
    assert np.array_equal(outputs(slim.path, samples[:100]), after[:100])


def test_only_what_must_be_is_unpacked(tmp_path: Path, kws: Model) -> None:
    """Depthwise convolutions have no int4 kernel; float16 has none at all."""
    for options, expected in (
        ({"scheme": "dynamic_int8"}, 0),
        ({"scheme": "int4"}, 4),
        ({"scheme": "int4", "compute": "float32"}, 10),
        ({"scheme": "float16"}, 10),
    ):
        folder = tmp_path / "-".join(map(str, options.values()))
        result = QuantizeWeightsTflite(**options).run(kws, context(folder, None))
        assert read_signature(result.path).graph.count("DEQUANTIZE") == expected


@pytest.mark.parametrize(
    ("scheme", "weight", "least_snr"), [("dynamic_int8", "int8", 35), ("int4", "int4", 12)]
)
def test_loops_and_transposed_convolutions(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, scheme: Any, weight: str, least_snr: float
) -> None:
    source = toy_model("loop", tmp_path_factory)
    result = QuantizeWeightsTflite(scheme=scheme).run(source, context(tmp_path / "out", None))
    assert list(types(result.path).values()) == [(weight, "float32")] * 4
    samples = inputs_of(Noise(shape=(8, 4)))
    assert snr_db(outputs(source.path, samples), outputs(result.path, samples)) > least_snr


def test_layers_apart_get_their_precision(tmp_path: Path, kws: Model) -> None:
    stage = QuantizeWeightsTflite(
        scheme="int4", layers={"depthwise*": "int8", "conv2d": "float32", "dense": "float16"}
    )
    result = stage.run(kws, context(tmp_path / "out", None))
    found = {name: weight for name, (weight, _) in types(result.path).items()}
    assert found == {
        "conv2d": "float32",
        **dict.fromkeys(("conv2d_1", "conv2d_2", "conv2d_3", "conv2d_4"), "int4"),
        **dict.fromkeys([f"depthwise_conv2d{n}" for n in ("", "_1", "_2", "_3")], "int8"),
        "dense": "float16",
    }
    with pytest.raises(StageError, match="no layer is called 'lstm'"):
        QuantizeWeightsTflite(scheme="int4", layers={"lstm": "int8"}).run(
            kws, context(tmp_path / "none", None)
        )


def test_blocks_are_for_dense_layers(tmp_path: Path, kws: Model) -> None:
    with pytest.raises(StageError, match="CONV_2D conv2d cannot have int4 in blocks of 32 weights"):
        QuantizeWeightsTflite(scheme="int4", block=32).run(kws, context(tmp_path / "a", None))
    others = {"conv*": "int8", "depthwise*": "int8"}
    with pytest.raises(StageError, match=r"dense cannot .* its rows of 64 weights are not a multiple of 128"):
        QuantizeWeightsTflite(scheme="int4", block=128, layers=others).run(kws, context(tmp_path / "b", None))
    finest = QuantizeWeightsTflite(scheme="int4", block=32, layers=others)
    whole = QuantizeWeightsTflite(scheme="int4", layers=others)
    results = [
        stage.run(kws, context(tmp_path / name, None)) for name, stage in (("c", finest), ("d", whole))
    ]
    assert [types(result.path)["dense"] for result in results] == [("int4", "float32")] * 2
    random = np.random.default_rng(1)
    samples = [random.standard_normal((49, 10, 1)).astype(np.float32) * 20 for _ in range(50)]
    expected = outputs(kws.path, samples)
    snr = [snr_db(expected, outputs(result.path, samples)) for result in results]
    assert snr[0] > snr[1] > 15


def test_what_the_kernel_would_get_wrong_is_unpacked(tmp_path: Path, kws: Model, real_data: Path) -> None:
    """Depthwise convolutions with one scale for all channels read beyond it: 7 % agreement, or NaN."""
    stage = QuantizeWeightsTflite(scheme="dynamic_int8", per_channel=False)
    result = stage.run(kws, context(tmp_path / "out", None))
    assert set(types(result.path).values()) == {("int8", "float32")}
    assert read_signature(result.path).graph.count("DEQUANTIZE") == 4
    samples = inputs_of(Stored(file=real_data / "kws" / "evaluation400.npz"))
    expected, found = outputs(kws.path, samples), outputs(result.path, samples)
    assert agreement(expected, found) >= 0.97
    assert snr_db(expected, found) > 24
    assert len(slimmed(load(result.path))) < 27_200


@pytest.mark.parametrize("scheme", ["dynamic_int8", "float16", "int4"])
def test_a_table_without_kernel_stays_float_with_a_note(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, scheme: str
) -> None:
    words, told = toy_model("words", tmp_path_factory), Told()
    result = QuantizeWeightsTflite(scheme=scheme).run(words, told.context(tmp_path / "a", None))
    assert told.notes == ["tables that stay in float32, without a quantized kernel: words (1,600 B)"]
    assert types(result.path)["words"][0] == "float32"
    assert types(result.path)["classes"][0] == scheme.removeprefix("dynamic_")
    ids = [np.random.default_rng(seed).integers(0, 50, 6, np.int32) for seed in range(20)]
    assert snr_db(outputs(words.path, ids), outputs(result.path, ids)) > (15 if scheme == "int4" else 35)
    with pytest.raises(StageError, match="GATHER words"):
        QuantizeWeightsTflite(scheme=scheme, layers={"words": "int8"}).run(
            words, context(tmp_path / "b", None)
        )


def test_a_layer_without_kernel_is_refused_by_name(
    tmp_path: Path, volume: Model, toy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match=r"CONV_3D solid has float32 weights .* not int8"):
        QuantizeWeightsTflite(scheme="dynamic_int8").run(volume, context(tmp_path / "a", None))
    monkeypatch.setattr(tflite_quantizer, "weights_recipe", lambda *_, **__: [])
    with pytest.raises(StageError, match="3 layers do not match the scheme float16: CONV_2D conv2d has"):
        QuantizeWeightsTflite(scheme="float16").run(toy, context(tmp_path / "b", None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "dynamic_int8", "block": 32}, "block applies to int4, not to dynamic_int8"),
        ({"scheme": "float16", "compute": "float32"}, "compute applies to int4, not to float16"),
        ({"scheme": "int4", "block": 32, "compute": "float32"}, "blocks cannot be dequantized"),
        ({"scheme": "int4", "block": 48}, "32, 64, 128 or 256"),
        ({"scheme": "int4", "layers": {"a": "int2"}}, "'float32', 'float16', 'int8' or 'int4'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantizeWeightsTflite(**options)


def test_the_search_gives_more_bits_where_they_count(tmp_path: Path, kws: Model, real_data: Path) -> None:
    told = Told()
    data = Stored(file=real_data / "kws" / "calibration100.npz")
    stage = QuantizeWeightsTflite(scheme="int4", per_channel=False, max_drop=0.05)
    with pytest.raises(StageError, match="needs validation or calibration data"):
        stage.run(kws, context(tmp_path / "a", None))
    result = stage.run(kws, told.context(tmp_path / "b", None, validation=data))
    (chosen,) = [trial for trial in told.trials if trial.status == "chosen"]
    assert chosen.drop <= 0.05 + 1e-9
    assert chosen.size_bytes == result.path.stat().st_size
    weights = {name: weight for name, (weight, _) in types(result.path).items()}
    assert {name for name, weight in weights.items() if weight == "int8"} == set(chosen.raised)
    assert 0 < len(chosen.raised) < KWS_LAYERS


def test_a_quantized_file_is_not_quantized_again(tmp_path: Path, toy: Model) -> None:
    once = QuantizeWeightsTflite(scheme="float16").run(toy, context(tmp_path / "a", Noise()))
    with pytest.raises(StageError, match="already quantized: CONV_2D conv2d has float16 weights"):
        QuantizeWeightsTflite(scheme="int4").run(once, context(tmp_path / "b", Noise()))
    assert len(slimmed(load(once.path))) < once.path.stat().st_size
