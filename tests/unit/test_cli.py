"""The command line: messages, streams and exit codes."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from edgeopt.cli.screen.tables import show_report
from edgeopt.commands import doctor
from edgeopt.config import absent
from edgeopt.plugin import Stage
from edgeopt.results import Report, Result, Run
from edgeopt.run.store import Store
from in_process import Edgeopt
from toy_results import PROBE

FRAMEWORKS = {"tensorflow", "torch", "keras", "onnx", "onnxruntime", "sklearn"}
Write = Callable[..., Path]


def data(tmp_path: Path, **arrays: np.ndarray) -> str:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    return "{evaluation: {uses: npz, with: {path: data.npz}}}"


def test_help_and_version(edgeopt: Edgeopt) -> None:
    assert "optimize" in edgeopt("--help").out
    said = edgeopt("--version")
    assert (said.code, said.out) == (0, "0.1.0\n")
    assert edgeopt("optimise").code == 2


def test_a_plan_is_a_tree_and_names_what_is_impossible(edgeopt: Edgeopt, write_recipe: Write) -> None:
    said = edgeopt("plan", write_recipe("optimize: {int8: {quantize: int8}}\n"))
    assert said.code == 0
    assert "int8 as tflite, measured on host" in said.out
    assert "quantize_tflite  [to do]" in said.out
    path = write_recipe(
        "optimize: {int8: {quantize: int8}}\n", data="{evaluation: {uses: digits, with: {part: evaluation}}}"
    )
    said = edgeopt("plan", path)
    assert said.code == 2
    assert "quantize_tflite needs calibration data" in said.out
    said = edgeopt("plan", path, "--json")
    assert json.loads(said.out)["impossible"][0]["variant"] == "int8"


def test_planning_writes_nothing(edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path) -> None:
    edgeopt("plan", write_recipe())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]


def test_a_recipe_error_exits_2_on_stderr(edgeopt: Edgeopt, write_recipe: Write) -> None:
    said = edgeopt("optimize", write_recipe(formats="[tflight]"))
    assert said.code == 2
    assert said.out == ""
    assert "recipe.yaml:6:11: formats.0: no format 'tflight'; did you mean 'tflite'?" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": np.zeros((4, 9, 9, 1), np.uint8), "y": np.zeros(4, np.int64)},
            "shape [9, 9, 1] does not match",
        ),
        ({"x": np.zeros((0, 8, 8, 1), np.uint8), "y": np.zeros(0, np.int64)}, "no samples"),
        ({"x": np.zeros((4, 8, 8, 1), np.uint8), "y": np.zeros(3, np.int64)}, "differ in length"),
        (
            {"x": np.full((4, 8, 8, 1), np.nan, np.float32), "y": np.zeros(4, np.int64)},
            "sample 0: the input contains NaN",
        ),
    ],
)
def test_unusable_data_is_refused_before_anything_is_built(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    said = edgeopt("optimize", write_recipe(data=data(tmp_path, **arrays)))
    assert said.code == 2
    assert message in said.err
    assert "data.npz" in said.err
    assert "✓" not in said.err


def test_a_metric_that_requires_labels_says_that_there_are_none(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8, 1), np.uint8))
    part = "{evaluation: {uses: npz, with: {path: data.npz}}}"
    said = edgeopt("plan", write_recipe(data=part, metric="top1"))
    assert said.code == 2
    assert "the evaluation data has no labels, but top1 requires them" in said.err
    assert "'label' is their key" in said.err


def test_a_nan_far_into_the_data_is_found_before_anything_is_built(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path
) -> None:
    x = np.zeros((50, 8, 8, 1), np.float32)
    x[37, 3, 3, 0] = np.inf
    said = edgeopt("optimize", write_recipe(data=data(tmp_path, x=x, y=np.zeros(50, np.int64))))
    assert said.code == 2
    assert "sample 37: the input contains infinity" in said.err


def test_a_model_that_is_not_what_its_name_says(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path
) -> None:
    (tmp_path / "model.keras").write_text("not a model")
    said = edgeopt("optimize", write_recipe(model="{path: model.keras}", data="", metric=""))
    assert said.code == 2
    assert "model.keras" in said.err


def test_a_pickle_where_weights_were_expected_never_runs(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("weights/data.pkl", pickle.dumps({"state_dict": Bomb()}))
        archive.writestr("weights/version", "3\n")
    (tmp_path / "net.py").write_text("def build():\n    raise SystemExit\n")
    model = "{factory: 'net:build', weights: weights.pt, inputs: [{name: x, shape: [1, 1, 8, 8]}]}"
    said = edgeopt("optimize", write_recipe(model=model, data="", metric=""))
    assert said.code == 2
    assert "weights.pt" in said.err
    assert "trust" in said.err
    assert not (tmp_path / "exploded").exists()


def test_a_lambda_layer_is_refused_with_the_setting_that_allows_it(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path
) -> None:
    config = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": "s",
            "layers": [
                {
                    "module": "keras.layers",
                    "class_name": "InputLayer",
                    "config": {"batch_shape": [None, 4], "dtype": "float32", "name": "i"},
                },
                {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "sneaky"}},
            ],
        },
    }
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    said = edgeopt("optimize", write_recipe(model="{path: model.keras}", data="", metric=""))
    assert said.code == 2
    assert "Lambda" in said.err
    assert "trust: true" in said.err


def test_a_device_that_does_not_exist(edgeopt: Edgeopt, write_recipe: Write) -> None:
    said = edgeopt("optimize", write_recipe(devices="[raspberry]"))
    assert said.code == 2
    assert "no device 'raspberry'" in said.err
    assert edgeopt("devices", "show", "raspberry").code == 2


def test_an_output_folder_that_cannot_be_written(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    said = edgeopt("optimize", write_recipe(), "--out", tmp_path / "taken" / "out")
    assert said.code == 2
    assert f"cannot write to {tmp_path / 'taken' / 'out'}" in said.err
    assert "--out" in said.err


def test_a_full_disk_exits_3_and_keeps_what_was_finished(
    edgeopt: Edgeopt, write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, kept = Store.put, []

    def fills_up(self: Store, key: str, folder: Path, meta: dict[str, object]) -> object:
        if len(kept) == 1:
            # A real ENOSPC from the kernel: every write to this device fails.
            (folder / "full").symlink_to("/dev/full")
            with (folder / "full").open("wb", buffering=0) as file:
                try:
                    file.write(b"x")
                except OSError as error:
                    from edgeopt.run.store import _explained

                    raise _explained(error, self.root) from error
        kept.append(key)
        return put(self, key, folder, meta)

    monkeypatch.setattr(Store, "put", fills_up)
    path = write_recipe(
        "optimize: {a: {stages: [edgeopt.testing.toys:Toy, edgeopt.testing.toys:Finish]}}\n",
        data="",
        metric="",
        devices="[host]",
    )
    said = edgeopt("optimize", path, "--keep-going")
    assert said.code == 3
    assert "no space left for the store" in said.err
    assert "run again to resume" in said.err
    assert Store(tmp_path / "artifacts" / "store").get(kept[0]) is not None


def test_a_bug_shows_one_line_and_keeps_the_traceback_in_a_file(
    edgeopt: Edgeopt, write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("internal surprise")

    monkeypatch.setattr("edgeopt.commands.start.load_recipe", broken)
    said = edgeopt("optimize", write_recipe())
    assert said.code == 70
    assert said.err.startswith("bug: RuntimeError: internal surprise\n")
    assert "Traceback" not in said.err
    log = Path(said.err.rpartition("report it with ")[2].strip())
    assert "internal surprise" in log.read_text()


def test_an_interrupt_exits_130(
    edgeopt: Edgeopt, write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeopt.commands.start.load_recipe", interrupted)
    assert edgeopt("optimize", write_recipe()).code == 130


def test_init_writes_a_recipe_that_plans(edgeopt: Edgeopt, tmp_path: Path) -> None:
    digits = Path(__file__).resolve().parents[2] / "recipes" / "digits" / "digits.keras"
    assert edgeopt("init", digits).code == 0
    text = (tmp_path / "recipe.yaml").read_text()
    assert str(digits) in text
    said = edgeopt("init", digits)
    assert said.code == 2
    assert "--force" in said.err
    for name in ("calibration", "evaluation"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((2, 8, 8, 1), np.float32), y=np.zeros(2, np.int64))
    said = edgeopt("plan", tmp_path / "recipe.yaml")
    assert (said.code, said.err) == (0, "")


def test_devices_are_listed_and_shown(edgeopt: Edgeopt) -> None:
    assert "✓ host  " in edgeopt("devices", "list").out
    assert "tflite: tflite_runtime" in edgeopt("devices", "show", "host-tflite-runtime").out


def test_a_device_without_its_environment_says_how_to_make_it(
    edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path / "empty"))  # other tests have set up their own
    said = edgeopt("devices", "check", "host-tflite-runtime")
    assert said.code == 3
    assert "edgeopt devices setup host-tflite-runtime" in said.err


def test_check_shows_what_the_host_has(edgeopt: Edgeopt) -> None:
    said = edgeopt("devices", "check", "host", "--json")
    found = json.loads(said.out)
    assert said.code == 0
    assert found["cores"] >= 1
    assert found["runtimes"]["null"]
    told = edgeopt("devices", "check", "host").out
    assert re.search(r"^memory +[\d.]+ [GM]iB$", told, re.MULTILINE)
    assert not re.search(r"[\[\]{}]|None", told)


def test_planning_imports_no_framework(write_recipe: Write, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['edgeopt', 'plan', {str(write_recipe())!r}]\n"
        "from edgeopt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(sorted({FRAMEWORKS!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"


VALUES = {
    "top1": (0.9886, ""),
    "top1_drop": (-0.0025, ""),
    "agreement": (1.0, ""),
    "fidelity_snr_db": (38.25, "dB"),
    "size_bytes": (1_098_816, "bytes"),
    "macs": (2_656_768, ""),
    "latency_p50_ms": (12.345, "ms"),
    "latency_p90_ms": (13.456, "ms"),
    "latency_ratio": (0.54321, ""),
    "peak_memory_bytes": (5_300_000, "bytes"),
}
ALWAYS = ["variant", "format", "status", "top1", "drop", "size", "p50", "÷ float"]


def measured(variant: str, **changes: float) -> Result:
    values = {name: (changes.get(name, value), unit) for name, (value, unit) in VALUES.items()}
    measurements = {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}
    return Result(variant=variant, format="tflite", device="host", status="ok", measurements=measurements)


def shown(width: int | None, *variants: str) -> list[str]:
    """The lines of a report on a terminal with this many columns; without a width, those in a file."""
    run = Run(started="2026-01-01", seconds=1, command="", edgeopt="0", samples=400)
    rows = [measured(name, macs=2_000_000 + index) for index, name in enumerate(variants)]
    report = Report(recipe="kws", run=run, environment={}, results=tuple(rows))
    file = io.StringIO()
    terminal = Console(file=file, width=width or 80, force_terminal=width is not None, color_system=None)
    show_report(report, terminal)
    return file.getvalue().splitlines()


def titles(line: str) -> list[str]:
    return line.replace("peak memory", "peak-memory").replace("÷ float", "÷-float").split()


@pytest.mark.parametrize(
    ("width", "more", "left_out"),
    [
        (80, [], "agreement, SNR, p90, peak memory, MACs"),
        (100, ["agreement", "SNR"], "p90, peak memory, MACs"),
        (140, ["agreement", "SNR", "MACs", "p90", "peak memory"], ""),
    ],
)
def test_a_terminal_gets_the_columns_that_fit_and_none_is_cut(
    width: int, more: list[str], left_out: str
) -> None:
    lines = shown(width, "float", "int8", "int8-pruned")
    told = [line for line in lines if line.startswith("hidden:")]
    assert set(titles(lines[1])) == {title.replace(" ", "-") for title in [*ALWAYS, *more]}
    text = "\n".join(lines)
    assert "…" not in text
    assert max(map(cell_len, lines)) <= width
    assert text.count("1,098,816 B") == text.count("12.3 ms") == text.count("-0.25 pt") == 3
    assert bool(told) == bool(left_out)
    if left_out:
        assert f"{left_out} (terminal too narrow)" in " ".join(text.split())


def test_a_long_variant_name_is_cut_before_a_column_is_left_out() -> None:
    lines = shown(80, "float", "int8-with-a-name-that-goes-on-and-on-and-on")
    assert set(titles(lines[1])) == {title.replace(" ", "-") for title in ALWAYS}
    assert "int8-with-a-n…" in lines[4] and "1,098,816 B" in lines[4]
    assert max(map(cell_len, lines)) <= 80


def test_a_file_gets_every_column_however_wide() -> None:
    long = "int8-with-a-name-that-goes-on-and-on-and-on"
    lines = shown(None, "float", long)
    assert long in lines[4] and len(titles(lines[1])) == 13
    assert not [line for line in lines if "…" in line or "hidden:" in line]


def test_the_shell_completes_names() -> None:
    arguments = (
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'edgeopt'; from edgeopt.cli import main; main()",
    )
    for words, expected in (
        ("edgeopt plan x --device cort", "cortex-m"),
        ("edgeopt devices check raspberry-pi-4", "raspberry-pi-4"),
    ):
        completion = {"_EDGEOPT_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment = {**os.environ, **completion, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
        assert done.stdout.split() == [expected], done.stderr


def test_unknown_commands_and_options_name_the_nearest(edgeopt: Edgeopt) -> None:
    assert "Did you mean 'optimize'" in " ".join(edgeopt("optimise", "x").err.split())
    for option, nearest in (("--devise", "--device"), ("--dryrun", "--dry-run"), ("--varaint", "--variant")):
        said = edgeopt("optimize", "x", option)
        assert said.code == 2
        assert nearest in said.err


def test_a_dry_run_is_a_plan(edgeopt: Edgeopt, write_recipe: Write) -> None:
    path = write_recipe("optimize: {int8: {quantize: int8}}\n")
    planned = edgeopt("plan", path, "--variant", "int8", "--json")
    assert edgeopt("optimize", path, "--dry-run", "--variant", "int8", "--json") == planned
    assert planned.code == 0


def test_the_doctor_says_what_can_be_made(edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.stages.keras_to_tflite import KerasToTflite

    monkeypatch.setattr(KerasToTflite, "missing", classmethod(lambda cls: ("tensorflow",)))
    said = edgeopt("doctor")
    assert said.code == 0
    assert "✗ tensorflow missing: in a checkout of edgeopt: pip install '.[keras]'" in said.out
    assert "free on the disk" in said.out and "adb, for Android devices" in said.out
    found = json.loads(edgeopt("doctor", "--json").out)
    cells = {(each["source"], each["format"], each["scheme"]): each for each in found["conversions"]}
    assert not cells["keras", "tflite", "float"]["possible"]
    assert cells["keras", "tflite", "float"]["missing"] == ["tensorflow"]
    assert cells["keras", "onnx", "int8"]["possible"] is not bool(cells["keras", "onnx", "int8"]["missing"])
    assert found["machine"]["cores"] >= 1 and set(found["tools"]) >= {"adb", "ssh"}
    assert "keras_to_tflite" in found["stages"]


def test_without_numpy_no_device_is_ready(
    edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "mine.yaml").write_text("base: stm32f4\n")
    assert re.search(r"\n. mine +no description; based on stm32f4", edgeopt("devices", "list").out)
    monkeypatch.setattr(absent, "installed", lambda: False)
    *rows, last = edgeopt("devices", "list").out.splitlines()
    assert rows and all(row.startswith("✗ ") for row in rows)
    assert last.startswith("nothing is measured without numpy, only checked by 'edgeopt lint': in a checkout")


def test_the_doctor_runs_without_numpy(edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch) -> None:
    here = doctor.Machine({**PROBE, "numpy": None}, 2**30, dict.fromkeys(doctor.TOOLS, True))
    monkeypatch.setattr(doctor, "machine", lambda: here)
    monkeypatch.setattr(Stage, "missing", classmethod(lambda cls: list(cls.requires)))
    said = edgeopt("doctor")
    assert said.code == 0
    assert "✗ numpy missing, without which nothing is measured here: in a checkout of edgeopt" in said.out
    assert "pip install '.[keras,torch]'" in said.out and "keras,torch,torch" not in said.out
