"""The same inputs on several devices: differences and their description."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.cli import main
from edgeopt.commands.parity import Parity, first_layer, layer_difference, parity, steps_in_front
from edgeopt.errors import DeviceError, UsageError
from edgeopt.evaluation.comparison import difference
from edgeopt.formats.known import format_named
from edgeopt.formats.side_car import record_of
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.files.slimming import slimmed
from edgeopt.model import Model
from edgeopt.results import Measurement
from edgeopt.run.assemble import magnified
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.outcome import Outcome
from toy_operators import operator, write
from toy_results import job_result
from toy_tflite import toy


def test_differences_are_counted_in_quantized_units() -> None:
    first = np.array([[0.0, 0.5], [1.0, 0.0], [0.25, 0.75]], np.float32)
    second = first.copy()
    second[1] = [0.25, 0.5]
    second[2, 1] -= 0.25
    found = difference([first], [second], [0.25])
    assert (found.samples, found.differing, found.max_steps, found.flips) == (3, 2, 3, 1)
    assert found.max_error == 0.75
    assert found.worst == (1, 2)
    values = found.measurements()
    assert set(values) == {"parity_max_steps", "parity_flips"}
    assert values["parity_max_steps"].value == 3 and values["parity_flips"].n == 3


def test_real_outputs_have_no_steps() -> None:
    found = difference([np.zeros((2, 1))], [np.full((2, 1), 1e-3)], [None])
    assert found.max_steps is None and found.flips is None  # one value per sample has no largest
    assert set(found.measurements()) == {"parity_max_error"}
    mixed = difference([np.zeros((2, 3))] * 2, [np.zeros((2, 3))] * 2, [0.5, None])
    assert mixed.max_steps is None and mixed.max_error == 0 and mixed.worst == ()


def test_no_number_on_one_side_is_an_infinite_difference() -> None:
    first, second = np.array([[1.0, np.nan, np.inf]]), np.array([[np.nan, np.nan, np.inf]])
    assert difference([first], [second], [None]).max_error == np.inf
    assert difference([first], [first], [None]).max_error == 0
    with pytest.raises(UsageError, match="cannot be compared"):
        difference([first], [first[:, :2]], [None])


def test_rounding_of_float_layers_is_no_difference() -> None:
    values = np.array([100.0, 1e-6], np.float32)
    assert layer_difference(values, values + np.float32(1e-4)) is None
    assert layer_difference(values, values + np.float32(1e-2)) == pytest.approx(1e-2, rel=1e-2)
    stored = np.array([-128, 127], np.int8)
    assert layer_difference(stored, stored) is None
    assert layer_difference(stored, -1 - stored) == 255


def layers(*values: list[int], names: str = "abc") -> Outcome:
    described = [{"name": name, "operator": f"OP_{name}", "scale": 0.5} for name in names[: len(values)]]
    return Outcome(
        "r", result=job_result(layers=described), layers=tuple(np.array(v, np.int8) for v in values)
    )


def test_the_first_layer_that_differs_is_named() -> None:
    one = layers([1, 2], [3, 4], [5, 6])
    layer, note = first_layer({"x": one, "y": layers([1, 2], [3, 7], [9, 9])})
    assert layer is not None and note == ""
    assert (layer.index, layer.name, layer.operator, layer.max_steps) == (1, "b", "OP_b", 3)
    assert first_layer({"x": one, "y": one})[1].startswith("no layer differs")
    assert first_layer({"x": one, "y": Outcome("r")}) == (None, "y cannot return layer outputs")
    assert first_layer({"x": one, "y": layers([0, 0], names="z")})[1].endswith("no layer in common")
    # An operator that the other runtime lacks, or has in another shape, is skipped.
    layer, _ = first_layer({"x": one, "y": layers([1], [5, 5], names="ac")})
    assert layer is not None and layer.name == "c"


def test_a_conversion_of_the_outputs_is_not_blamed_for_them() -> None:
    def ends_with(operator: str, *values: list[int]) -> Outcome:
        made = layers(*values)
        made.layer_infos[-1]["operator"] = operator
        return made

    one = ends_with("DEQUANTIZE", [1, 2], [3, 4], [5, 6])
    told = first_layer({"x": one, "y": ends_with("DEQUANTIZE", [1], [3], [5, 9])}, {"DEQUANTIZE"})
    assert told == (None, "the outputs differ; the inner layers of the runtimes could not be compared")
    told = first_layer({"x": one, "y": ends_with("DEQUANTIZE", [1, 2], [3, 4], [5, 9])}, {"DEQUANTIZE"})
    assert told == (None, "the outputs differ; the 2 comparable inner layers are equal")
    inside = ends_with("DEQUANTIZE", [1, 2], [3, 5], [5, 9])
    layer, _ = first_layer({"x": one, "y": inside})
    assert layer is not None and layer.name == "b"


def test_steps_are_counted_in_front_of_a_softmax_that_magnifies_them() -> None:
    def ends_with(*operators: str, values: list[list[int]]) -> Outcome:
        made = layers(*values)
        for info, kind in zip(made.layer_infos, operators, strict=True):
            info["operator"] = kind
        return made

    casts, magnifying = {"DEQUANTIZE"}, {"SOFTMAX"}
    kinds = ("FULLY_CONNECTED", "SOFTMAX", "DEQUANTIZE")
    one = ends_with(*kinds, values=[[1, 2], [3, 4], [5, 6]])
    other = ends_with(*kinds, values=[[1, 6], [3, 100], [5, 100]])
    assert steps_in_front({"x": one, "y": other}, casts, magnifying) == (4, "SOFTMAX")
    assert steps_in_front({"x": one, "y": one}, casts, magnifying) == (0, "SOFTMAX")
    assert steps_in_front({"x": one, "y": other}, casts, {"LOGISTIC"}) is None
    # The layer in front of it is hidden, or of another kind; a side that returns no layers has none.
    short = ends_with("SOFTMAX", "DEQUANTIZE", values=[[3, 4], [5, 6]])
    assert steps_in_front({"x": short, "y": short}, casts, magnifying) is None
    wide = ends_with(*kinds, values=[[1, 2, 3], [3, 4], [5, 6]])
    assert steps_in_front({"x": wide, "y": wide}, casts, magnifying) is None
    assert steps_in_front({"x": one, "y": Outcome("r")}, casts, magnifying) is None


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Custom devices: the host again, one without runtimes, and one that is unreachable."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "twin.yaml").write_text("runtimes: {tflite: litert}\n")
    (folder / "bare.yaml").write_text("runtimes: {onnx: onnxruntime}\n")
    gone = "connection: {uses: local, with: {environment: never-made}}\nruntimes: {tflite: litert}\n"
    (folder / "gone.yaml").write_text(gone)
    return folder


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.tflite"
    path.write_bytes(toy())
    return path


def test_equal_devices_are_equal_and_others_say_why_not(toy_file: Path, devices: Path) -> None:
    found = parity(toy_file, ["host", "twin", "bare", "gone"], device_folders=[devices])
    first, twin, bare, gone = found.devices
    assert found.random_inputs and found.samples == 64
    assert (first.device, first.differing) == ("host", 0)
    assert (twin.status, twin.differing, twin.max_steps, twin.flips, twin.layer) == ("ok", 0, 0, 0, None)
    assert (bare.status, bare.reason) == ("skipped", "no runtime for tflite")
    assert gone.status == "skipped" and "is not set up" in gone.reason


def test_the_first_device_must_run(toy_file: Path, devices: Path) -> None:
    with pytest.raises(UsageError, match="at least two"):
        parity(toy_file, ["host"])
    with pytest.raises(UsageError, match="bare has no runtime for tflite"):
        parity(toy_file, ["bare", "host"], device_folders=[devices])
    with pytest.raises(DeviceError, match="is not set up"):
        parity(toy_file, ["gone", "host"], device_folders=[devices])


def test_a_runtime_tells_what_its_layers_give(toy_file: Path, tmp_path: Path) -> None:
    from edgeopt.devices.agent_archive import build_agent
    from edgeopt.devices.device import load_device
    from edgeopt.formats.source import inspect
    from edgeopt.model import Preprocessing
    from edgeopt.run.measuring.samples import Evaluation
    from edgeopt.run.store import Store

    bench = Bench(load_device("host"), build_agent(tmp_path / "agent.pyz"), Store(tmp_path / "store")).open()
    model = inspect(toy_file).model
    model = model.model_copy(update={"inputs": model.inputs or bench.describe(model)})
    outcome = bench.run(model, Evaluation(None, Preprocessing(), tmp_path), layers=(5, 0))
    assert outcome.error == ""
    told = outcome.layer_infos
    assert [layer["operator"] for layer in told] == ["FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert [values.shape for values in outcome.layers] == [(2, 1, 8), (2, 1, 8)]
    last = outcome.layers[-1].astype(np.float64)
    (spec,) = outcome.result["outputs"]
    real = (last - spec["zero_point"]) * spec["scale"]
    assert np.allclose(real.reshape(2, 8), outcome.outputs[0][[5, 0]].reshape(2, 8))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeopt", "parity", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_the_command(
    run: Callable[..., tuple[int, str, str]], toy_file: Path, devices: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 8), np.float32))
    mine = ["--device-folder", devices, "--data", tmp_path / "data.npz"]
    names = ["--device", "host", "--device", "twin"]
    code, out, _ = run(toy_file, *names, *mine, "--max-steps", "0", "--json")
    assert code == 0 and Parity.model_validate(json.loads(out)).samples == 3
    code, out, _ = run(toy_file, "--devices", "host,twin,gone", *mine)  # the former spelling
    assert code == 3 and "is not set up" in out
    code, _, err = run(toy_file, "--device", "host", *mine)
    assert code == 2 and "at least two" in err
    code, _, err = run(toy_file, "--device", "host", "--device", "nowhere", *mine)
    assert code == 2 and "no device 'nowhere'" in err


def test_the_layer_that_differs_has_the_name_of_the_source(
    run: Callable[..., tuple[int, str, str]], toy_file: Path, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slimmed file has no names: they are in the record beside it."""
    toy_file.write_bytes(slimmed(load(toy_file)))
    record = {"digest": format_named("tflite").digest(toy_file), "operators": ["body.0", "head.1"]}
    record_of(toy_file).write_text(json.dumps(record))
    right = Bench.run

    def wrong(bench: Bench, *arguments: Any, **options: Any) -> Outcome:
        """The last layer of the twin gives other values."""
        found = right(bench, *arguments, **options)
        if bench.device.name != "twin":
            return found
        layers = (*found.layers[:-1], *(-1 - values for values in found.layers[-1:]))
        return found._replace(outputs=(found.outputs[0] + 1,), layers=layers)

    monkeypatch.setattr(Bench, "run", wrong)
    found = parity(toy_file, ["host", "twin"], device_folders=[devices])
    layer = found.devices[1].layer
    assert layer is not None and (layer.index, layer.name) == (1, "head.1")
    _, out, _ = run(toy_file, "--device", "host", "--device", "twin", "--device-folder", devices)
    assert "head.1" in out and "body.0" not in out


def test_the_steps_behind_a_softmax_are_said_to_be_those_of_the_output(tmp_path: Path) -> None:
    def note(last: str, steps: float | None) -> str:
        path = tmp_path / f"{last}.tflite"
        chain = operator("CONV_2D", weighted=True), operator(last)
        write(path, *chain, shape=(1, 4, 4, 2), types=("int8", "int8"))
        model = Model(format="tflite", path=path)
        return "".join(magnified(model, None if steps is None else Measurement(value=steps)))

    told = note("SOFTMAX", 149)
    assert told.startswith("the 149 steps to host are those of the output, after SOFTMAX")
    assert note("RELU", 149) == note("SOFTMAX", 1) == note("SOFTMAX", None) == ""
    other = Model(format="onnx", path=tmp_path / "none.onnx")
    assert magnified(other, Measurement(value=149.0)) == ()
