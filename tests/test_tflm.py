"""TensorFlow Lite Micro: outputs of its own kernels, and the arena recorded by its allocator."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.commands.profile import profile
from edgeopt.devices.device import load_device
from edgeopt.devices.lint import lint
from edgeopt.errors import DeviceError
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.metrics.top1 import Top1
from toy_operators import operator, write

IMAGE = (1, 4, 4, 2)


@pytest.fixture(autouse=True)
def _environment(made_environment: Callable[[str], None]) -> None:
    made_environment("cortex-m")


def test_published_kws_reaches_its_figures(real_data: Path) -> None:
    report = profile(
        real_data / "mlperf-tiny" / "kws_reference_int8.tflite",
        device="cortex-m",
        dataset=Npz(path=real_data / "kws" / "evaluation400.npz", label="y"),
        metrics=(Top1(),),
    )
    (result,) = report.results
    values = {name: value.value for name, value in result.measurements.items()}
    assert values["arena_bytes"] == pytest.approx(24_272, rel=0.02)
    assert values["arena_head_bytes"] + values["arena_tail_bytes"] == values["arena_bytes"]
    assert values["top1"] == pytest.approx(0.89, abs=0.006)
    assert not [name for name in values if name.startswith("latency")]
    assert result.runtime.startswith("tflm 0.dev")


@pytest.mark.parametrize(("name", "arena"), [("resnet8", 55_984), ("vww", 103_680), ("ad", 3_984)])
def test_arena_of_the_other_published_files(real_data: Path, name: str, arena: int) -> None:
    report = profile(real_data / "mlperf-tiny" / f"{name}_reference_int8.tflite", device="cortex-m")
    assert report.results[0].measurements["arena_bytes"].value == pytest.approx(arena, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "types", "weights", "words"),
    [
        ("CONV_2D", "float32", "int8", "Hybrid models are not supported on TFLite Micro"),
        ("EXP", "int8", "int8", "Node EXP"),
        ("TOPK_V2", "int8", "int8", "Didn't find op for builtin opcode 'TOPK_V2'"),
        ("FlexAddV2", "float32", "float32", "CUSTOM"),
    ],
)
def test_what_is_refused_is_told_in_its_own_words_and_was_foreseen(
    tmp_path: Path, kind: str, types: str, weights: str, words: str
) -> None:
    one = operator(kind, weighted=kind == "CONV_2D")
    file = write(tmp_path / "m.tflite", one, shape=IMAGE, types=(types, types), weights=weights)
    with pytest.raises(DeviceError, match=words):
        profile(file, device="cortex-m")
    assert lint(file, load_device("cortex-m"), "tflite")[0].severity == "error"


def test_an_arena_that_the_device_has_no_ram_for_fails(real_data: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.yaml"
    board.write_text("base: stm32f4\ndescription: our board\nlimits: {flash: 512 KiB, ram: 96 KiB}\n")
    file = real_data / "mlperf-tiny" / "vww_reference_int8.tflite"
    assert not lint(file, load_device(str(board)), "tflite")  # its largest operator alone fits
    report = profile(file, device=str(board))
    (result,) = report.results
    assert (result.status, report.exit_code) == ("failed", 3)
    assert "the arena is 103,680 bytes, but the device has 98,304 bytes of RAM" in result.reason
    assert result.measurements["arena_bytes"].value == 103_680


def test_a_file_without_data_runs_on_random_inputs(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tflite", operator("RELU"), shape=IMAGE, types=("int8", "int8"))
    report = profile(file, device="cortex-m")
    assert report.results[0].measurements["arena_bytes"].value > 0
    assert report.run.samples == 64
