"""Arm's Vela: its estimates are recorded, and models that it silently cannot use are failures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.commands.optimize import optimize
from edgeopt.commands.profile import profile
from edgeopt.errors import DeviceError
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.metrics.top1 import Top1
from toy_operators import operator, write

IMAGE = (1, 8, 8, 4)


@pytest.fixture(autouse=True)
def _environment(made_environment: Callable[[str], None]) -> None:
    made_environment("ethos-u55-128")


@pytest.mark.parametrize(
    ("name", "cycles", "sram", "flash"),
    [("kws", 89_900, 22_192, 31_104), ("resnet8", 201_747, 51_840, 79_248), ("vww", 220_870, 74_480, 76_000)],
)
def test_published_files_reach_their_figures(
    real_data: Path, name: str, cycles: int, sram: int, flash: int
) -> None:
    (result,) = profile(
        real_data / "mlperf-tiny" / f"{name}_reference_int8.tflite", device="ethos-u55-128"
    ).results
    values = {key: value.value for key, value in result.measurements.items()}
    assert values["npu_cycles"] == pytest.approx(cycles, rel=0.01)
    assert values["estimated_latency_ms"] == pytest.approx(cycles / 500e3, rel=0.01)
    assert values["sram_bytes"] == pytest.approx(sram, rel=0.01)
    assert values["flash_bytes"] == pytest.approx(flash, rel=0.01)
    assert values["npu_share"] == 1.0
    assert not [key for key in values if key.startswith(("latency", "top1", "peak"))]
    assert result.notes[0].startswith(
        "estimate by ethos-u-vela 5.2.0, nothing was executed: Ethos_U55_High_End"
    )
    assert "random inputs: no accuracy" not in result.notes


def test_nothing_is_judged_where_nothing_ran(real_data: Path) -> None:
    report = profile(
        real_data / "mlperf-tiny" / "kws_reference_int8.tflite",
        device="ethos-u65-256",
        dataset=Npz(path=real_data / "kws" / "evaluation400.npz", label="y"),
        metrics=(Top1(),),
    )
    values = report.results[0].measurements
    assert "top1" not in values
    assert values["npu_cycles"].value == pytest.approx(56_879, rel=0.01)
    assert values["dram_bytes"].value == pytest.approx(31_600, rel=0.01)
    assert report.run.samples == 0


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_success_without_any_use_of_the_npu_is_a_failure(tmp_path: Path, weights: str) -> None:
    conv = operator("CONV_2D", weighted=True)
    file = write(tmp_path / "m.tflite", conv, shape=IMAGE, types=("float32", "float32"), weights=weights)
    with pytest.raises(
        DeviceError, match=r"none of its 1 operators can run on the NPU.*float operators.*int8"
    ):
        profile(file, device="ethos-u55-128")


def test_the_share_counts_the_models_own_operators(tmp_path: Path) -> None:
    # Vela counts 26 operators for the softmax, and would report 96 % although one of two is excluded.
    both = operator("SOFTMAX"), operator("FLOOR")
    file = write(tmp_path / "m.tflite", *both, shape=IMAGE, types=("int8", "int8"))
    (result,) = profile(file, device="ethos-u55-128").results
    assert result.measurements["npu_share"].value == 0.5
    assert result.notes[1].startswith("1 operators fall back to the CPU: ")


@pytest.mark.slow
def test_a_run_sends_what_can_run_and_keeps_what_was_compiled(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    devices = tmp_path / "devices"
    devices.mkdir()
    (devices / "tiny.yaml").write_text("runtimes: {tflite: litert}\nlimits: {flash: 1 KiB}\n")
    recipe = write_recipe(optimize="{int8: {quantize: int8}, plain: {}}", devices="[ethos-u55-128, tiny]")
    report = optimize(recipe, out=tmp_path / "out", store=tmp_path / "store", device_folders=(devices,))
    results = {(result.variant, result.device): result for result in report.results}
    for variant in ("float", "int8", "plain"):
        small = results[variant, "tiny"]
        assert small.status == "failed"
        assert small.reason.startswith("not sent to tiny: [flash] the file is ")
        assert small.measurements["size_bytes"].value > 1024
        assert "top1" not in small.measurements
    assert ("float", "ethos-u55-128") not in results
    refused = results["plain", "ethos-u55-128"]
    assert refused.status == "failed"
    assert "not sent to ethos-u55-128: [float] " in refused.reason
    assert "quantize: int8" in refused.reason
    good = results["int8", "ethos-u55-128"]
    assert good.status == "ok"
    assert good.artifact is not None
    assert good.artifact.path == "models/int8.ethos-u55-128.tflite"
    assert b"ethos-u" in (tmp_path / "out" / good.artifact.path).read_bytes()
    assert 0.5 < good.measurements["npu_share"].value <= 1
    assert good.notes[0].startswith("estimate by ethos-u-vela")
    assert {"NPU", "CPU"} >= {layer["target"] for layer in good.layers}
    assert sum(int(layer["cycles"] or 0) for layer in good.layers) > 0
    page = (tmp_path / "out" / "devices" / "ethos-u55-128.md").read_text()
    assert "### Operators of int8.tflite" in page
