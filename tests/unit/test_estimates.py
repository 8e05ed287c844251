"""Estimates from published figures: a band with its sources, apart from everything that was measured."""

import re
from pathlib import Path

import numpy as np
import pytest

from edgeopt.devices.device import Device, Estimate, Limits, known_devices, load_device, shipped
from edgeopt.devices.estimates import code_band, code_size_of, latency_band, speed_of
from edgeopt.devices.tables import code_tables, speed_tables
from edgeopt.evaluation.judge import judge
from edgeopt.formats.known import format_named
from edgeopt.model import Model
from edgeopt.plugin import LayerSize
from edgeopt.reports.pagedata.rows import Scale, row_of
from edgeopt.results import Gate, Measurement, Result
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.readings import readings
from toy_operators import operator, write

IMAGE = (1, 4, 4, 2)
MACS = 4 * 4 * 2 * 2
"""Of the toy's convolution with a 1 × 1 kernel."""


def layer(macs: int | None, dtype: str = "int8") -> LayerSize:
    return LayerSize(name="y", kind="CONV_2D", types=(dtype, dtype, dtype), macs=macs)


def toy(folder: Path, dtype: str = "int8") -> Model:
    conv, relu = operator("CONV_2D", weighted=True), operator("RELU")
    return Model(
        format="tflite", path=write(folder / "m.tflite", conv, relu, shape=IMAGE, types=(dtype, dtype))
    )


@pytest.mark.parametrize("name", speed_tables())
def test_a_band_contains_every_published_run(name: str) -> None:
    """Each network's own time is in the band of its MACs and clock."""
    speed = speed_of(name)
    assert speed.margin == 1 or len({run.network for run in speed.networks}) == 1
    for run in speed.networks:
        board = Device(name="x", runtimes={}, estimate=Estimate(kernels=name, clock=run.clock))
        band = latency_band([layer(run.macs), layer(0, "float32")], board)
        assert band is not None
        assert band.low <= run.seconds * 1e3 * (1 + 1e-9) and run.seconds * 1e3 <= band.high * (1 + 1e-9)
        assert run.source and run.source in band.basis
        assert ("assumed up to 2 times slower or faster" in band.basis) == (speed.margin == 2)
        assert 0.01 < run.macs_per_cycle < 8


def test_a_band_scales_with_macs_and_clock() -> None:
    slow = latency_band([layer(1_000_000)], load_device("nrf52840"))
    fast = latency_band([layer(2_000_000), layer(1_000_000)], load_device("stm32f4"))
    assert slow is not None and fast is not None
    assert fast.low / slow.low == pytest.approx(3 * 64 / 168)
    assert fast.high / slow.high == pytest.approx(3 * 64 / 168)
    assert slow.basis.startswith("1,000,000 MACs at 64 MHz, 0.1 to 0.27 MACs per cycle with CMSIS-NN")


@pytest.mark.parametrize("layers", [[], [layer(0)], [layer(None)], [layer(9), layer(9, "float32")]])
def test_what_is_not_published_is_not_estimated(layers: list[LayerSize]) -> None:
    assert latency_band(layers, load_device("stm32f4")) is None
    assert latency_band([layer(9)], load_device("cortex-m")) is None


def test_code_sizes_name_their_sources() -> None:
    for name in code_tables():
        size = code_size_of(name)
        assert size is not None and size.source and all(build.source for build in size.builds)
        assert all(build.bytes > size.core for build in size.builds)
    assert code_size_of("nothing") is None


def test_the_band_is_a_measurement_of_its_own(tmp_path: Path) -> None:
    model, device = toy(tmp_path), load_device("stm32f4")
    read = readings(model, device, Outcome("tflm", outputs=(np.zeros((1, 2)),)))
    low, high = (read.values[f"estimated_latency_{end}_ms"] for end in ("min", "max"))
    slowest, fastest = speed_of("cortex-m4").macs_per_cycle
    assert low.value == pytest.approx(MACS / fastest / 168e3) and high.value == pytest.approx(
        MACS / slowest / 168e3
    )
    assert not any(name.startswith("latency") for name in read.values)
    (note,) = [note for note in read.notes if "estimate, nothing" in note]
    assert re.match(
        r"an estimate, nothing was timed: one run takes \S+ µs to \S+ µs, from 64 MACs at 168 MHz", note
    )
    assert "MLPerf Tiny" in note


def test_flash_is_file_and_code(tmp_path: Path) -> None:
    model = toy(tmp_path)
    size = model.path.stat().st_size
    read = readings(model, load_device("cortex-m"), Outcome("tflm"))
    low, high = (read.values[f"estimated_flash_{end}_bytes"].value for end in ("min", "max"))
    code = code_band(2, "tflm")
    assert code is not None and (low, high) == (size + int(code.low), size + int(code.high))
    (note,) = read.notes
    assert note.startswith(
        f"an estimate of flash: {size} B for the file and 20.0 KiB to 49.4 KiB for the code"
    )
    assert note.endswith("names the sources")
    for name in ("host", "ethos-u55-128"):  # without a limit, without published sizes
        others = readings(model, load_device(name), Outcome("x")).values
        assert not any("flash" in measured for measured in others)


def test_a_gate_uses_an_estimate_only_if_it_names_it(tmp_path: Path) -> None:
    read = readings(toy(tmp_path), load_device("stm32f4"), Outcome("tflm"))
    row = Result(variant="v", format="tflite", device="stm32f4", status="ok", measurements=read.values)
    for metric, status in (
        ("latency_p50_ms", "fail"),
        ("estimated_latency_ms", "fail"),
        ("estimated_latency_max_ms", "pass"),
    ):
        (verdict,) = judge([Gate(metric=metric, max=10)], [row], {})
        assert verdict.status == status, verdict.reason


def test_a_timed_run_is_not_estimated(tmp_path: Path) -> None:
    timed = Outcome("tflm", times={"latency": np.array([1e-3, 2e-3])})
    assert "estimated_latency_min_ms" not in readings(toy(tmp_path), load_device("stm32f4"), timed).values
    assert (
        "estimated_latency_min_ms"
        not in readings(toy(tmp_path), load_device("host"), Outcome("litert")).values
    )


def test_a_float_file_has_no_estimate_and_says_why(tmp_path: Path) -> None:
    read = readings(toy(tmp_path, "float32"), load_device("stm32f4"), Outcome("tflm"))
    assert "estimated_latency_min_ms" not in read.values
    assert any("the published figures are for int8" in note for note in read.notes)


@pytest.mark.parametrize("name", ["kws", "resnet8", "vww", "ad"])
def test_the_published_networks_have_the_macs_of_the_tables(real_data: Path, name: str) -> None:
    """The tables were made with the MACs that edgeopt counts in the benchmark's own files."""
    layers = (
        format_named("tflite").breakdown(real_data / "mlperf-tiny" / f"{name}_reference_int8.tflite").layers
    )
    total = sum(each.macs or 0 for each in layers)
    assert total in {run.macs for run in speed_of("cortex-m4").networks}
    for device in map(load_device, known_devices()):
        assert (latency_band(layers, device) is None) == (device.estimate is None)


def test_the_tables_of_the_page_are_those_of_the_devices() -> None:
    page = (shipped("devices").parent / "docs" / "devices" / "microcontrollers.md").read_text("utf-8")
    described = {}
    for names, flash, ram, clock in re.findall(
        r"^\| (`.+?`) \| .*? \| (.*?) ?\| (.*?) \| (.*?) ?\|$", page, re.M
    ):
        described |= dict.fromkeys(re.findall(r"`(.+?)`", names), (flash, ram, clock))
    with_budget = {name for name in known_devices() if load_device(name).estimate} | {"corstone-300"}
    assert with_budget <= set(described)
    for name in with_budget:
        flash, ram, clock = described[name]
        device = load_device(name)
        assert device.limits.model_dump() == Limits(flash=flash or None, ram=ram).model_dump()
        if device.estimate is not None:
            assert Estimate(kernels=device.estimate.kernels, clock=clock) == device.estimate
    for name in speed_tables():
        slowest, fastest = speed_of(name).macs_per_cycle
        assert re.search(rf"^\| `{name}` \|.*\| {slowest:.2g} to {fastest:.2g} \|$", page, re.M)


def test_the_page_shows_the_slow_end_as_an_estimate(tmp_path: Path) -> None:
    values = readings(toy(tmp_path), load_device("stm32f4"), Outcome("tflm")).values
    row = Result(variant="v", format="tflite", device="stm32f4", status="ok", measurements=values)
    shown = row_of(row, Scale("", None, 1.0), [], "", "", "")
    assert shown["estimated"] and shown["latency"]["text"] == values["estimated_latency_max_ms"].text
    timed = row.model_copy(update={"measurements": {"latency_p50_ms": Measurement.of("latency_p50_ms", 3.0)}})
    assert not row_of(timed, Scale("", None, 1.0), [], "", "", "")["estimated"]
    assert (
        row_of(row.model_copy(update={"measurements": {}}), Scale("", None, 1.0), [], "", "", "")["latency"]
        is None
    )
