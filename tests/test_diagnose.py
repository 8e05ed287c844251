"""Diagnosis: each cause on a model constructed to have it, with numbers, and the command."""

import fnmatch
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgeopt.cli.diagnose import _show as show
from edgeopt.commands.diagnose import diagnose
from edgeopt.errors import StageError, UsageError
from edgeopt.evaluation.diagnosis import Diagnosis, Part, Twin, causes, propose
from edgeopt.evaluation.layer_causes import Cause, pattern_of
from edgeopt.evaluation.layer_comparison import Data, compare
from edgeopt.evaluation.layer_statistics import Comparison, LayerStatistics
from edgeopt.formats.known import format_named
from edgeopt.model import Model, Preprocessing, TensorSpec
from edgeopt.plugin import Context, Dataset, Feed, Sample
from edgeopt.plugin.layer_pair import Grid, Weights
from edgeopt.recipe.resolve import find_recipe
from edgeopt.reports.diagnosis import render, with_evaluation
from edgeopt.results import Hop, Measurement, Report, Result, Run
from in_process import Edgeopt

pytestmark = pytest.mark.usefixtures("kept_workers")

IMAGE = TensorSpec(name="image", shape=(1, 3, 12, 12), layout="NCHW")


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in modules)


needs_onnx = pytest.mark.skipif(not has("onnx", "onnxruntime"), reason="needs the extra 'onnx'")
needs_tflite = pytest.mark.skipif(
    not has("ai_edge_quantizer", "ai_edge_litert"), reason="needs the extra 'keras'"
)
needs_executorch = pytest.mark.skipif(not has("torch", "executorch"), reason="needs the extra 'executorch'")


class Images(Dataset):
    """Random images of one brightness; the first may contain one outlier."""

    count: int = 24
    brightness: float = 1.0
    spike: float = 0.0
    shape: tuple[int, ...] = (3, 12, 12)

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(5)
        for index in range(self.count):
            values = random.standard_normal(self.shape).astype(np.float32) * np.float32(self.brightness)
            if self.spike and index == 0:
                values.flat[0] = self.spike
            yield Sample((values,))

    def digest(self) -> str:
        return self.model_dump_json()


def data(**options: Any) -> Data:
    name = options.pop("name", "calibration")
    return Data(name, Feed(Images(**options), Preprocessing()))


# A layer of a healthy int8 network.
HEALTHY = LayerStatistics(
    name="conv",
    operator="Conv",
    snr_db=33.0,
    own_snr_db=36.0,
    alone_snr_db=34.0,
    share=0.5,
    mean_error=1e-4,
    bias=0.02,
    low=-4.0,
    high=4.0,
    minimum=-3.9,
    maximum=3.9,
    outlier=1.6,
    activation_spread=2.5,
    weight_type="int8",
    weights_per_channel=True,
    weight_spread=4.0,
    weight_spread_median=2.0,
    weight_spread_quartile=3.0,
    weight_levels=127,
    weight_input_spread=2.0,
)
# KWS of MLPerf Tiny with full-range int8 weights, first convolution, 16 calibration samples; onnxruntime 1.32
# on an x86 processor with AVX2 and without VNNI.
SATURATING = HEALTHY.model_copy(
    update={
        "name": "functional_1/conv2d/BiasAdd_2",
        "snr_db": -10.9,
        "own_snr_db": -11.0,
        "alone_snr_db": -2.1,
        "share": 0.999,
        "weight_spread": 9.49,
        "runtime_snr_db": -10.95,
        "runtime_noise": 1.55e4,
    }
)


def comparison(*layers: LayerStatistics, snr_db: float = 30.0, agreement: float = 1.0) -> Comparison:
    return Comparison(layers=layers, samples=16, snr_db=snr_db, agreement=agreement)


def kinds(found: list[Cause]) -> list[str]:
    return [cause.kind for cause in found]


def test_saturation_is_told_from_the_runtime_against_the_file_as_written() -> None:
    others = HEALTHY.model_copy(update={"name": "conv_2", "share": 0.001, "runtime_snr_db": 200.0})
    found = causes(comparison(SATURATING, others, snr_db=-2.05, agreement=0.25))
    assert kinds(found) == ["saturation"]
    assert found[0].layers == ("functional_1/conv2d/BiasAdd_2",)
    assert "saturating 8-bit accumulation on this CPU" in found[0].text
    assert "(-10.9 dB" in found[0].text or "(-11.0 dB" in found[0].text
    assert found[0].remedies[:2] == (
        {"quantize": {"weight_type": "auto"}},
        {"quantize": {"reduce_range": True}},
    )
    # The same file on a processor with VNNI: the runtime follows the file exactly.
    with_vnni = SATURATING.model_copy(
        update={"own_snr_db": 30.9, "alone_snr_db": 28.0, "runtime_snr_db": 200.0, "runtime_noise": 0.0}
    )
    assert kinds(causes(comparison(with_vnni))) == ["last_layer"]
    assert "saturation" not in kinds(causes(comparison(with_vnni, others)))


def test_kernels_that_round_another_way_do_not_saturate() -> None:
    softmax = HEALTHY.model_copy(update={"runtime_snr_db": 47.1, "runtime_noise": 3.87, "own_snr_db": 47.1})
    assert "saturation" not in kinds(causes(comparison(softmax, HEALTHY)))


def test_a_healthy_model_costs_what_8_bits_cost() -> None:
    parts = [HEALTHY.model_copy(update={"name": f"conv_{i}", "share": 0.2}) for i in range(5)]
    found = causes(comparison(*parts))
    assert kinds(found) == ["cost"]
    assert "this is the cost of 8 bits: outputs at 30.0 dB" in found[0].text
    assert not found[0].remedies
    # The errors of the single layers do not add up to this.
    assert kinds(causes(comparison(*parts, snr_db=1.0, agreement=0.3))) == ["unknown"]
    # No single cause, but not good enough: the search decides which layers stay in float.
    found = causes(comparison(*parts, snr_db=15.0, agreement=0.9))
    assert found[0].remedies == ({"quantize": {"max_drop": 0.005}},)


@pytest.mark.parametrize(("snr_db", "agreement", "fine"), [(30.0, 1.0, True), (30.0, 0.9, False)])
def test_the_command_begins_with_whether_there_is_a_loss(
    snr_db: float, agreement: float, fine: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [HEALTHY.model_copy(update={"name": f"conv_{i}", "share": 0.2}) for i in range(5)]
    seen = comparison(*parts, snr_db=snr_db, agreement=agreement)
    found = Diagnosis(
        recipe="r",
        variant="int8",
        format="onnx",
        data="calibration",
        comparison=seen,
        causes=tuple(causes(seen)),
    )
    show(found, 10)
    first, _, _ = capsys.readouterr().out.partition("layers by their share")
    assert ("nothing to repair: outputs and decisions are close" in first) is fine


def test_a_step_that_should_have_kept_the_outputs_is_named_before_any_layer() -> None:
    broken = Hop(stage="my_stage", produced="onnx", lossless=True, snr_db=0.0, agreement=0.1, status="broken")
    pruned = Hop(stage="prune_torch", produced="torch", lossless=False, snr_db=3.0, status="broken")
    found = causes(comparison(HEALTHY), [pruned, broken])
    assert found[0].kind == "export"
    assert found[0].text.startswith("bad export, not quantization: my_stage should preserve the outputs")
    assert "0.0 dB" in found[0].text


PARTS: dict[str, Part] = {"prune_torch": "compress", "finetune_torch": "train", "quantize_onnx": "quantize"}


def pruned(stage: str = "prune_torch", **changes: Any) -> Hop:
    usual: dict[str, Any] = {"snr_db": 14.0, "agreement": 0.94}
    return Hop(stage=stage, produced="onnx", lossless=False, **(usual | changes))


def test_what_pruning_lost_is_not_the_cost_of_8_bits() -> None:
    fine = comparison(*[HEALTHY.model_copy(update={"name": f"conv_{i}", "share": 0.2}) for i in range(5)])
    (found,) = causes(fine, [pruned()], parts=PARTS)
    assert (found.kind, found.share) == ("pruning", pytest.approx(1.0))
    assert found.text == (
        "pruning, not quantization: prune_torch changed 6.0% of the decisions of the source model, "
        "8 bits changed 0.0% of the decisions of the result; prune less, or finetune"
    )
    assert found.remedies == ({"finetune": {}},)
    # Training has the other remedy; what is trained may move its outputs, as long as it decides alike.
    (found,) = causes(fine, [pruned("prune_torch + finetune_torch")], parts=PARTS)
    assert found.text.endswith("prune less, or train longer") and not found.remedies
    alike = pruned("prune_torch + finetune_torch", snr_db=3.0, agreement=0.99)
    assert kinds(causes(fine, [alike], parts=PARTS)) == ["cost"]
    # Nothing runs in between on the host: what quantization changed is taken off.
    both = pruned("prune_torch + quantize_onnx", agreement=0.94)
    assert kinds(causes(comparison(HEALTHY, agreement=0.99), [both], parts=PARTS)) == ["pruning"]
    assert kinds(causes(comparison(HEALTHY, agreement=0.95), [both], parts=PARTS)) != ["pruning"]


def test_pruning_and_a_bad_layer_are_both_named_by_their_shares() -> None:
    found = causes(comparison(SATURATING, snr_db=10.0, agreement=0.97), [pruned()], parts=PARTS)
    assert kinds(found) == ["pruning", "saturation"]
    assert [cause.share for cause in found] == [pytest.approx(2 / 3), pytest.approx(0.999 / 3)]
    # Quantization lost more: the layers are the causes.
    found = causes(comparison(SATURATING, snr_db=-2.05, agreement=0.25), [pruned()], parts=PARTS)
    assert (kinds(found), found[0].share) == (["saturation"], 0.999)
    # A model without decisions is judged by the power of the noise.
    numbers = comparison(HEALTHY, agreement=1.0).model_copy(update={"agreement": None})
    (found_one,) = causes(numbers, [pruned(agreement=None)], parts=PARTS)
    assert "prune_torch left 14.0 dB of the source model, 8 bits left 30.0 dB of the result" in found_one.text
    assert kinds(causes(numbers, [pruned(agreement=None, snr_db=25.0)], parts=PARTS)) != ["pruning"]


@pytest.mark.parametrize(
    ("here", "there", "kind", "words"),
    [
        (34.0, None, "cost", "outputs at 34.0 dB; torchscript hides its layers"),
        (9.0, 32.0, "kernels", "outputs at 9.0 dB; quantized from the same program, executorch has 32.0 dB"),
        (9.0, 12.0, "cost", "has 12.0 dB: diagnose it with --format executorch"),
        (9.0, None, "unknown", "outputs at 9.0 dB; torchscript hides its layers"),
    ],
)
def test_another_format_is_diagnosed_instead_only_if_it_is_as_bad(
    here: float, there: float | None, kind: str, words: str
) -> None:
    quantized = None if there is None else Hop(stage="q", produced="p", lossless=False, snr_db=there)
    twin = Twin(here="torchscript", format=format_named("torchscript").twin, quantized=quantized)
    (found,) = causes(comparison(snr_db=here, agreement=1.0), twin=twin)
    assert found.kind == kind and words in found.text
    assert format_named(twin.format).layers is not None
    # What pruning lost needs no other format.
    assert kinds(causes(comparison(snr_db=30.0), [pruned()], parts=PARTS, twin=twin)) == ["pruning"]


def test_the_last_layer_and_a_shifted_mean_are_named() -> None:
    last = HEALTHY.model_copy(
        update={"name": "dense", "operator": "Gemm", "share": 0.8, "alone_snr_db": 15.0}
    )
    first = HEALTHY.model_copy(update={"share": 0.2})
    found = causes(comparison(first, last))
    assert kinds(found) == ["last_layer"]
    assert found[0].remedies == ({"quantize": {"layers": {"dense": "float32"}}},)
    shifted = HEALTHY.model_copy(update={"share": 0.9, "bias": 0.8, "own_snr_db": 20.0})
    behind = HEALTHY.model_copy(update={"name": "dense", "share": 0.1})
    found = causes(comparison(shifted, behind))
    assert kinds(found) == ["bias"]
    assert found[0].remedies[0] == {"bias_correction": "empirical"}


def test_the_first_remedies_that_can_be_had_are_proposed_together() -> None:
    first = Cause(
        kind="saturation",
        text="",
        remedies=({"quantize": {"weight_type": "auto"}}, {"quantize": {"reduce_range": True}}),
    )
    second = Cause(kind="weight_spread", text="", remedies=({"quantize": {"per_channel": True}},))
    third = Cause(kind="activation_spread", text="", remedies=({"equalize": "cross_layer"},))
    everything = propose([first, second, third], lambda changes: True)
    assert everything == {
        "quantize": {"weight_type": "auto", "per_channel": True},
        "equalize": "cross_layer",
    }
    no_types = propose([first, second, third], lambda changes: "weight_type" not in str(changes))
    assert no_types["quantize"] == {"reduce_range": True, "per_channel": True}
    assert propose([first], lambda changes: False) == {}


def test_the_patch_is_yaml_to_paste() -> None:
    patch = {
        "optimize": {"int8": {"quantize": {"scheme": "int8", "layers": {pattern_of("a*[1]"): "float32"}}}}
    }
    found = Diagnosis(
        recipe="r",
        variant="int8",
        format="onnx",
        data="calibration",
        comparison=comparison(HEALTHY),
        causes=(),
        patch=patch,
    )
    assert yaml.safe_load(found.patch_text) == patch
    assert len(found.patch_text.splitlines()) == 2
    assert fnmatch.fnmatchcase("a*[1]", pattern_of("a*[1]"))
    assert not fnmatch.fnmatchcase("ab1", pattern_of("a*[1]"))


def test_the_drop_that_a_run_has_measured_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = Diagnosis(
        recipe="r",
        variant="int8",
        format="onnx",
        data="calibration",
        comparison=comparison(HEALTHY),
        causes=(),
    )
    values = {
        "top1": Measurement(value=0.875, kind="fraction", role="quality"),
        "top1_drop": Measurement(value=0.025, ci95=(0.0, 0.05), kind="points", role="drop"),
    }
    row = Result(variant="int8", format="onnx", device="pi", status="ok", measurements=values)
    told = Run(started="2026-01-01", seconds=1, command="", edgeopt="0")
    other = row.model_copy(update={"format": "tflite"})
    assert with_evaluation(found, Report(recipe="r", run=told, results=(other,))) == found
    found = with_evaluation(found, Report(recipe="r", run=told, results=(row,)))
    text = "top1 87.50 %, drop +2.50 pt (95 % interval +0.00 pt to +5.00 pt)"
    show(found, 3)
    assert f"on the evaluation data of the run: {text}" in capsys.readouterr().out.replace("\n", " ")
    assert text in render(found)


def test_grids_and_weights_are_told_in_real_numbers() -> None:
    grid = Grid.of(0.5, 10, "uint8")
    assert (grid.low, grid.high) == (-5.0, 122.5)
    assert grid.snap(np.array([-9.0, 0.3, 0.2, 500.0])).tolist() == [-5.0, 0.5, 0.0, 122.5]
    stored = np.array([[127, -3], [1, 0]], np.int8)
    weights = Weights.of(stored, np.array([0.1]), np.array([0]), 0, 1)
    assert weights.by_input.tolist() == [127.0, 3.0]
    assert not weights.per_channel
    assert weights.levels == 1
    assert weights.largest.tolist() == pytest.approx([12.7, 0.1])
    # uint8 with zero point 128 is the same.
    shifted = Weights.of(
        (stored.astype(np.int16) + 128).astype(np.uint8), np.array([0.1]), np.array([128]), 0
    )
    assert shifted.largest.tolist() == pytest.approx([12.7, 0.1])


def onnx_network(path: Path, spread: float = 1.0, joined: float = 0.0) -> Model:
    """conv, relu, conv, relu, pool, dense. ``spread``: half of the first convolution's channels are so much
    larger, and the second makes up for it: the outputs stay the same. ``joined``: the images, times
    this, are joined to the second convolution's channels, and weigh as much there."""
    import onnx
    from onnx import helper, numpy_helper

    random = np.random.default_rng(3)
    first = random.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5
    second = random.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8
    factors = np.where(np.arange(8) % 2 == 0, spread, 1.0).astype(np.float32)
    constants = {
        "w1": first * factors[:, None, None, None],
        "b1": np.zeros(8, np.float32),
        "w2": second / factors[None, :, None, None],
        "b2": np.zeros(8, np.float32),
        "large": np.array(joined, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], name="relu_1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"], name="relu_2"),
    ]
    width, features = 8, "r2"
    if joined:
        nodes += [
            node("Mul", ["image", "large"], ["scaled"], name="scale"),
            node("Concat", ["r2", "scaled"], ["joined"], axis=1, name="join"),
        ]
        width, features = 11, "joined"
    dense = random.standard_normal((width * 36, 5)).astype(np.float32) / 10
    if joined:
        dense.reshape(width, 36, 5)[8:] /= joined
    constants["w3"] = dense
    nodes += [
        node("AveragePool", [features], ["pooled"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        node("Flatten", ["pooled"], ["flat"], name="flatten"),
        node("MatMul", ["flat", "w3"], ["scores"], name="dense"),
    ]
    used = {name for at in nodes for name in at.input}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", 1, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("scores", 1, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return Model(format="onnx", path=path, inputs=(IMAGE,))


def quantized_onnx(model: Model, folder: Path, calibration: Dataset | None = None, **options: Any) -> Model:
    from edgeopt.stages.quantize_onnx import QuantizeOnnx

    folder.mkdir()
    # Independent of this processor: the figures are the same everywhere.
    options.setdefault("weight_type", "uint8")
    feed = Feed(calibration or Images(), Preprocessing())
    return QuantizeOnnx(**options).run(model, Context(folder, feed, lambda line: None))


@needs_onnx
def test_onnx_layers_add_up_and_a_sound_model_has_no_culprit(tmp_path: Path) -> None:
    model = onnx_network(tmp_path / "model.onnx")
    found = compare(model, quantized_onnx(model, tmp_path / "int8"), [data()], 8)
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == ["image", "first", "second", "pool", "flatten", "dense"]
    assert found.samples == 8
    assert not found.unmatched
    assert sum(layer.share for layer in found.layers) == pytest.approx(1.0)
    assert all(layer.own_snr_db > 30 for layer in found.layers)
    # Errors of independent roundings add up to the total, apart from correlation.
    alone = sum(10 ** (-layer.alone_snr_db / 10) for layer in found.layers)
    assert -10 * np.log10(alone) == pytest.approx(found.snr_db, abs=3.0)
    assert layers["first"].low == 0.0, "the range expresses the ReLU"
    assert layers["dense"].inputs[0][0] in ("flatten", "flat")
    assert layers["flatten"].own_snr_db == 200.0
    assert found.written_snr_db == pytest.approx(found.snr_db, abs=1.0)
    assert kinds(causes(found)) == ["cost"]


@needs_onnx
def test_channel_ranges_that_spread_are_named_and_per_channel_scales_repair_them(tmp_path: Path) -> None:
    model = onnx_network(tmp_path / "model.onnx", spread=100.0)
    options = {"weight_type": "uint8", "per_channel": False}
    per_tensor = compare(model, quantized_onnx(model, tmp_path / "tensor", **options), [data()], 8)
    found = causes(per_tensor)
    named = {cause.kind: cause for cause in found}
    assert named["weight_spread"].layers[0] == "first"
    assert named["weight_spread"].remedies[0] == {"quantize": {"per_channel": True}}
    assert "with one scale per tensor" in named["weight_spread"].text
    first = next(layer for layer in per_tensor.layers if layer.name == "first")
    assert first.weight_spread is not None
    assert first.weight_spread > 60
    assert first.weight_levels is not None
    assert first.weight_levels <= 2
    # Per channel, the weights are fine; the remaining cause is the common scale of the activations.
    options["per_channel"] = True
    per_channel = compare(model, quantized_onnx(model, tmp_path / "channel", **options), [data()], 8)
    found = causes(per_channel)
    assert {cause.kind: cause.layers for cause in found} == {
        "activation_spread": ("first",),
        "input_spread": ("second",),
    }
    assert all(cause.remedies[0] == {"equalize": "cross_layer"} for cause in found)
    assert per_channel.snr_db > per_tensor.snr_db + 3


@needs_onnx
def test_one_value_far_out_is_named_and_a_percentile_leaves_it_out(tmp_path: Path) -> None:
    model = onnx_network(tmp_path / "model.onnx")
    spiked = Images(spike=300.0)
    quantized = quantized_onnx(model, tmp_path / "minmax", spiked)
    seen = compare(model, quantized, [data(spike=300.0)], 24)
    found = causes(seen)
    assert found[0].kind == "outlier"
    assert "image" in found[0].layers
    assert found[0].remedies[0] == {"quantize": {"calibrator": "percentile"}}
    image = next(layer for layer in seen.layers if layer.name == "image")
    assert image.maximum == 300.0
    assert image.outlier > 50
    # Judged without that value, like most samples.
    before = compare(model, quantized, [data()], 24)
    repaired = quantized_onnx(
        model, tmp_path / "percentile", spiked, calibrator="percentile", percentile=99.9
    )
    after = compare(model, repaired, [data()], 24)
    assert after.snr_db > before.snr_db + 10


@needs_onnx
def test_a_clipped_calibration_shows_on_other_data_and_calibrating_there_repairs_it(tmp_path: Path) -> None:
    model = onnx_network(tmp_path / "model.onnx")
    dim = quantized_onnx(model, tmp_path / "dim", Images(brightness=0.1))
    both = [data(brightness=0.1), data(name="train")]
    seen = compare(model, dim, both, 16)
    recalibrate = {"data": {"calibration": {"uses": "npz", "with": {"path": "train.npz"}}}}
    found = causes(seen, recalibrate=recalibrate)
    assert found[0].kind == "clipping"
    assert found[0].remedies[0] == recalibrate
    assert "are outside the calibrated range" in found[0].text
    assert seen.clipped_by_data["calibration"] < 0.001
    assert seen.clipped_by_data["train"] > 0.5
    image = next(layer for layer in seen.layers if layer.name == "image")
    assert image.clipped_noise > 0.95
    assert image.high is not None
    assert image.maximum > 5 * image.high
    bright = compare(model, quantized_onnx(model, tmp_path / "bright"), both, 16)
    assert bright.snr_db > seen.snr_db + 15


@needs_onnx
def test_a_concatenation_of_mixed_ranges_is_named(tmp_path: Path) -> None:
    model = onnx_network(tmp_path / "model.onnx", joined=100.0)
    seen = compare(model, quantized_onnx(model, tmp_path / "int8"), [data()], 8)
    found = {cause.kind: cause for cause in causes(seen)}
    assert found["mixed_ranges"].layers == ("join",)
    assert "join (Concat) joins ranges" in found["mixed_ranges"].text
    join = next(layer for layer in seen.layers if layer.name == "join")
    largest = [value for _, value in join.inputs]
    assert max(largest) / min(largest) > 30
    wide = compare(model, quantized_onnx(model, tmp_path / "wide", scheme="int8x16"), [data()], 8)
    assert found["mixed_ranges"].remedies[0] == {"quantize": {"scheme": "int8x16"}}
    assert wide.snr_db > seen.snr_db + 10


@needs_onnx
def test_files_that_take_integers_are_compared_as_well(tmp_path: Path) -> None:
    model = onnx_network(tmp_path / "model.onnx")
    real = compare(model, quantized_onnx(model, tmp_path / "real"), [data()], 4)
    stored = compare(model, quantized_onnx(model, tmp_path / "stored", io="int8"), [data()], 4)
    assert [layer.name for layer in stored.layers] == [layer.name for layer in real.layers]
    assert stored.snr_db == pytest.approx(real.snr_db, abs=1.0)


def test_without_samples_or_for_another_format_it_says_so(tmp_path: Path) -> None:
    model = Model(format="keras", path=tmp_path / "model.keras", inputs=(IMAGE,))
    with pytest.raises(StageError, match="the layers of keras files cannot be compared"):
        compare(model, model, [data()], 4)


@needs_executorch
@pytest.mark.filterwarnings("ignore")  # torch and ExecuTorch warn about their own deprecations
def test_programs_are_compared_node_by_node(tmp_path: Path) -> None:
    import torch

    from edgeopt.formats.torch.files import program as torch_program
    from edgeopt.stages.quantize_xnnpack import QuantizeXnnpack

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.dense = torch.nn.Linear(8 * 36, 5)
            factors = torch.tensor([100.0, 1.0] * 4)
            with torch.no_grad():
                self.first.weight *= factors[:, None, None, None]
                self.first.bias *= factors
                self.second.weight /= factors[None, :, None, None]

        def forward(self, x: Any) -> Any:
            inner = torch.relu(self.second(torch.relu(self.first(x))))
            return self.dense(torch.nn.functional.avg_pool2d(inner, 2).flatten(1))

    source = Model(format="torch", path=tmp_path / "none")
    model = torch_program.save_module(Network().eval(), tmp_path / "model.pt2", source, (IMAGE,))
    (tmp_path / "int8").mkdir()
    context = Context(tmp_path / "int8", Feed(Images(), Preprocessing()), lambda line: None)
    quantized = QuantizeXnnpack(per_channel=False).run(model, context)
    seen = compare(model, quantized, [data()], 8)
    layers = {layer.name: layer for layer in seen.layers}
    assert [name for name in layers if "first" in name or "second" in name or "dense" in name] == [
        "first",
        "second",
        "dense",
    ]
    assert layers["first"].weights_per_channel is False
    assert (layers["first"].weight_spread or 0) > 60
    named = {cause.kind: cause for cause in causes(seen)}
    assert named["activation_spread"].layers[0] == "first"
    assert named["weight_spread"].layers == ("first",)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


DIGITS = ("diagnose", "digits-keras", "--variant", "int8", "--samples", "16")


@needs_tflite
@pytest.mark.skipif(not has("tensorflow"), reason="needs the extra 'keras'")
def test_the_command_diagnoses_a_tflite_file_before_it_is_slimmed(edgeopt: Edgeopt, store: Path) -> None:
    per_tensor = "optimize.int8.quantize={scheme: int8, per_channel: false}"
    code, out, err = edgeopt(*DIGITS, "--store", store, "--format", "tflite", "--json", "--set", per_tensor)
    assert code == 0, err
    found = json.loads(out)
    layers = found["comparison"]["layers"]
    weighted = [layer for layer in layers if layer["weight_type"]]
    assert len(weighted) >= 4
    assert all(layer["weight_type"] == "int8" and layer["own_snr_db"] > 20 for layer in weighted)
    assert all(layer["weights_per_channel"] is False for layer in weighted)
    assert all(layer["operator"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for layer in weighted)
    assert sum(layer["share"] for layer in layers) == pytest.approx(1.0)
    assert found["comparison"]["samples"] == 16
    assert found["data"] == "calibration"
    assert found["comparison"]["snr_db"] > 20
    assert "add data.validation" in found["notes"][0]
    assert [step["stage"] for step in found["steps"]][-1] in ("slim_tflite", "quantize_tflite")


@needs_onnx
@pytest.mark.skipif(not has("tensorflow", "tf2onnx"), reason="needs the extra 'keras'")
def test_apply_measures_before_and_after_on_the_evaluation_data(
    edgeopt: Edgeopt, store: Path, tmp_path: Path
) -> None:
    """Calibrated on images eight times too dark: training data reveal and fix it."""
    from edgeopt.evaluation.datasets.digits import Digits

    images = np.stack([sample.inputs[0] for sample in Digits(part="calibration").samples()])
    np.savez(tmp_path / "dark.npz", x=images.astype(np.float32) / 8)
    np.savez(tmp_path / "right.npz", x=images.astype(np.float32))
    sets = [
        f"data.calibration={{uses: npz, with: {{path: {tmp_path / 'dark.npz'}, label: null}}}}",
        f"data.train={{uses: npz, with: {{path: {tmp_path / 'right.npz'}, label: null}}}}",
    ]
    options = ("--format", "onnx", "--apply", "--json", "--set", sets[0], "--set", sets[1])
    code, out, err = edgeopt(*DIGITS, "--store", store, *options)
    assert code == 0, err
    found = json.loads(out)
    assert found["causes"][0]["kind"] == "clipping"
    assert "are outside the calibrated range" in found["causes"][0]["text"]
    assert found["patch"]["data"]["calibration"]["with"]["path"] == str(tmp_path / "right.npz")
    before, after = found["applied"]
    assert before["measurements"]["top1"]["value"] < 0.8
    assert after["measurements"]["top1"]["value"] > 0.95
    assert after["measurements"]["agreement"]["value"] > 0.98
    assert after["measurements"]["fidelity_snr_db"]["value"] > 25
    assert after["measurements"]["size_bytes"]["value"] < 40_000


@needs_onnx
@pytest.mark.skipif(not has("tensorflow", "tf2onnx"), reason="needs the extra 'keras'")
def test_a_stage_that_breaks_the_model_is_named_instead_of_quantization(
    edgeopt: Edgeopt, store: Path
) -> None:
    broken = "optimize={int8: {stages: [keras_to_onnx, 'edgeopt.testing.toys:Ruin', quantize_onnx]}}"
    code, out, err = edgeopt(*DIGITS, "--store", store, "--format", "onnx", "--set", broken)
    assert code == 0, err
    assert (
        "bad export, not quantization: edgeopt.testing.toys:Ruin should preserve the outputs but changed them"
        in out
    )
    assert "change in the recipe" not in out


@needs_onnx
@pytest.mark.skipif(not has("tensorflow", "tf2onnx"), reason="needs the extra 'keras'")
def test_a_model_that_was_pruned_too_much_is_not_told_that_8_bits_cost_it(
    edgeopt: Edgeopt, store: Path
) -> None:
    slim = "optimize={int8: {prune: {channels: 0.7}, quantize: int8}}"
    code, out, err = edgeopt(*DIGITS, "--store", store, "--format", "onnx", "--set", slim, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["comparison"]["agreement"] > 0.9  # of the pruned model with its int8 file
    assert found["causes"][0]["text"].startswith("pruning, not quantization: prune_keras")
    assert not any("the cost of 8 bits" in cause["text"] for cause in found["causes"])


@pytest.mark.parametrize(
    ("variant", "format", "message"),
    [
        ("int9", "onnx", "has no variant 'int9'; did you mean 'int8'?"),
        ("float", "onnx", "variant 'float' is not quantized"),
        ("kept", "onnx", "variant 'kept' is not quantized"),
        ("int8", "onxx", "no format 'onxx'; did you mean 'onnx'?"),
        ("", "onnx", "digits-torch.yaml has int8"),
        ("int8", "", "digits-torch.yaml has tflite, onnx, torchscript, executorch"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_before_anything_is_built(
    variant: str, format: str, message: str, tmp_path: Path
) -> None:
    kept = "optimize.kept={stages: [torch_to_exported_program]}"
    with pytest.raises(UsageError) as error:
        diagnose("digits-torch", variant, format, store=tmp_path / "store", overrides=[kept])
    assert message in str(error.value)
    assert not (tmp_path / "store").exists()


def test_the_recipe_in_the_folder_of_a_run_is_diagnosed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(find_recipe("digits-torch").read_text())
    with pytest.raises(UsageError, match=r"run/recipe.yaml has no variant 'int9'; did you mean 'int8'\?"):
        diagnose(run, "int9", "onnx", store=tmp_path / "store", data_root=find_recipe("digits-torch").parent)
    (run / "recipe.yaml").rename(run / "report.json")
    with pytest.raises(UsageError, match="run is a run of a recipe, which is elsewhere"):
        diagnose(run, "int8", "onnx", store=tmp_path / "store")
    with pytest.raises(
        UsageError, match=r"net\.pth is no recipe: a quantized variant is diagnosed with"
    ) as told:
        diagnose("net.pth", "int8", "onnx", store=tmp_path / "store")
    assert "edgeopt optimize net.pth --int8 --out run, then: edgeopt diagnose run" in str(told.value)


def test_a_wrong_command_exits_2(edgeopt: Edgeopt) -> None:
    code, out, err = edgeopt("diagnose", "digits-torch", "--variant", "float", "--format", "onnx")
    assert (code, out) == (2, "")
    assert "choose one with quantize" in err
