"""Arm's Vela: what it says of a model is kept, and its silence about a model it cannot use is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_operators import operator, write

from edgeopt.datasets.npz import Npz
from edgeopt.errors import DeviceError
from edgeopt.metrics.top1 import Top1
from edgeopt.pipeline import optimize
from edgeopt.profiler import profile

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
    assert result.notes[0].startswith("estimate by ethos-u-vela 5.2.0, nothing was executed: Ethos_U55_High_End")
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
    with pytest.raises(DeviceError, match=r"none of its 1 operators can run on the NPU.*float operators.*int8"):
        profile(file, device="ethos-u55-128")


def test_the_share_counts_the_models_own_operators(tmp_path: Path) -> None:
    # A softmax alone would become dozens of operators on the NPU, and hide that one in two is not there.
    both = operator("ABS"), operator("TOPK_V2")
    file = write(tmp_path / "m.tflite", *both, shape=IMAGE, types=("int8", "int8"))
    with pytest.raises(DeviceError):
        profile(file, device="ethos-u55-128")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("ABS"), shape=IMAGE, types=("int8", "int8"))
    file.write_bytes(file.read_bytes()[:96])
    with pytest.raises((DeviceError, Exception)):
        profile(file, device="ethos-u55-128")


@pytest.mark.slow
def test_a_run_keeps_the_compiled_model(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(
        optimize="{int8: {quantize: int8}}", devices="[ethos-u55-128]", latency="{min_runs: 2, min_seconds: 0}"
    )
    report = optimize(recipe, out=tmp_path / "out", store=tmp_path / "store")
    results = {result.variant: result for result in report.results}
    assert results["float"].status == "failed"
    assert "float operators" in results["float"].reason
    good = results["int8"]
    assert good.status == "ok"
    assert good.artifact is not None
    assert good.artifact.path == "models/int8.ethos-u55-128.tflite"
    assert b"ethos-u" in (tmp_path / "out" / good.artifact.path).read_bytes()
    assert 0.5 < good.measurements["npu_share"].value <= 1
    assert good.notes[0].startswith("estimate by ethos-u-vela")
