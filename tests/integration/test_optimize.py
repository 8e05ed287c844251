"""The main job on the shipped models, through the command line, with real converters and runtimes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgeopt.results import Report
from edgeopt.run.measuring.session import PROBE_SAMPLES
from edgeopt.run.store import Store

TESTS = Path(__file__).resolve().parent.parent
FORMATS = ("tflite", "onnx", "torchscript", "executorch")
FRAMEWORKS = {"tensorflow", "torch", "keras", "onnx", "onnxruntime", "sklearn"}
CELLS = {(variant, format_name) for variant in ("float", "int8") for format_name in FORMATS}


class Done(NamedTuple):
    code: int
    err: str
    report: dict[str, Any]
    out: Path

    def row(self, variant: str, format_name: str) -> dict[str, Any]:
        (row,) = [r for r in self.report["results"] if (r["variant"], r["format"]) == (variant, format_name)]
        assert isinstance(row, dict)
        return row

    def digests(self) -> dict[str, str]:
        return {f"{r['variant']}.{r['format']}": r["artifact"]["digest"] for r in self.report["results"]}


def command(recipe: str | Path, out: Path, store: Path, *settings: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    edgeopt = [sys.executable, "-c", "from edgeopt.cli import main; main()"]
    return [*edgeopt, "optimize", str(recipe), "--out", str(out), "--store", str(store), *sets]


def optimize(recipe: str | Path, out: Path, store: Path, *settings: str) -> Done:
    """Run the command with the tests' toys importable, as a user's own stages would be."""
    done = subprocess.run(
        command(recipe, out, store, *settings),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )
    assert "Traceback" not in done.stderr
    path = out / "report.json"
    return Done(done.returncode, done.stderr, json.loads(path.read_text()) if path.exists() else {}, out)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Done:
    return optimize("digits-keras", tmp_path_factory.mktemp("keras"), store)


@pytest.fixture(scope="module")
def torch(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Done:
    return optimize("digits-torch", tmp_path_factory.mktemp("torch"), store)


@pytest.fixture(params=["keras", "torch"])
def digits(request: pytest.FixtureRequest) -> Done:
    done = request.getfixturevalue(request.param)
    assert isinstance(done, Done)
    return done


def test_every_cell_is_built_measured_and_passes(digits: Done) -> None:
    assert digits.code == 0, digits.err
    rows = digits.report["results"]
    assert {(row["variant"], row["format"]) for row in rows} == CELLS
    for row in rows:
        values = row["measurements"]
        assert row["status"] == "ok", row["reason"]
        assert values["top1"]["n"] == 500
        assert values["top1_drop"]["value"] <= 0.01
        assert values["agreement"]["value"] >= 0.99
        assert 0 < values["latency_p50_ms"]["value"] <= values["latency_p99_ms"]["value"]
        assert values["latency_p50_ms"]["n"] >= 50
        assert values["peak_memory_bytes"]["value"] > 0
        assert values["gzip_bytes"]["value"] < values["size_bytes"]["value"] == row["artifact"]["size_bytes"]
        assert all(hop["status"] == "ok" for hop in row["hops"])
        assert row["hops"]
        if row["variant"] == "float":
            assert values["max_abs_error"]["value"] < 1e-4
        else:
            assert values["fidelity_snr_db"]["value"] > 25
            assert values["latency_ratio"]["value"] > 0
            size = digits.row("float", row["format"])["artifact"]["size_bytes"]
            assert row["artifact"]["size_bytes"] < 0.65 * size
    assert all(gate["status"] == "pass" for gate in digits.report["gates"])
    (shipped,) = digits.report["recommended"]
    sizes = {row["measurements"]["size_bytes"]["value"]: row for row in rows}
    smallest = sizes[min(sizes)]
    assert (shipped["status"], shipped["variant"], shipped["format"]) == ("ship", "int8", smallest["format"])
    path = smallest["artifact"]["path"]
    assert f"**Ship this on host**: [`{path}`](./{path})" in (digits.out / "report.md").read_text("utf-8")
    # Every file of the two formats that say how their operators are connected has its graph.
    graphs = {row["format"] for row in rows if row["artifact"]["breakdown"]["graph"]}
    assert graphs == {"tflite", "onnx"}


def test_the_folder_holds_what_the_contract_says(digits: Done) -> None:
    out = digits.out
    Report.model_validate_json((out / "report.json").read_text())
    Report.model_validate_json((out / "devices" / "host.json").read_text())
    assert "| int8 | tflite | ok |" in (out / "report.md").read_text()
    assert "| int8 | tflite | ok |" in (out / "devices" / "host.md").read_text()
    assert "quantize_tflite" in (out / "run.log").read_text()
    names = {path.name for path in (out / "models").iterdir()}
    artifacts = {f"{v}.{s}" for v in ("float", "int8") for s in ("tflite", "onnx", "ptl", "pte")}
    assert names == artifacts | {f"{name}.json" for name in artifacts}
    record = json.loads((out / "models" / "int8.tflite.json").read_text())
    assert record["preprocessing"]["scale"] == 1 / 16
    assert record["digest"] == digits.row("int8", "tflite")["artifact"]["digest"]
    assert record["inputs"][0]["shape"][0] == 1
    assert len(record["labels"]) in (0, 10)


def test_the_second_run_imports_no_framework_and_measures_nothing_again(
    torch: Done, store: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['edgeopt', 'optimize', 'digits-torch', '--out', {str(tmp_path)!r}, "
        f"'--store', {str(store)!r}]\n"
        "from edgeopt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(sorted({FRAMEWORKS!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "✓" not in done.stderr.replace("✓    0.0 s  source", "")
    again = json.loads((tmp_path / "report.json").read_text())
    assert all(row["cached"] for row in again["results"])
    for row in again["results"]:
        assert row["measurements"] == torch.row(row["variant"], row["format"])["measurements"]


def test_a_step_that_is_an_artifact_is_not_run_again(keras: Done, torch: Done, store: Path) -> None:
    """The float file before quantization: only other steps are run for the comparison, on fewer samples."""
    assert keras.code == torch.code == 0
    runs = Counter[str]()
    for path in store.rglob("result.json"):
        with np.load(path.with_name("outputs.npz")) as outputs:
            samples = len(outputs[outputs.files[0]])
        if samples == PROBE_SAMPLES:
            runs[json.loads(path.read_text())["runtime"]["name"]] += 1
    # Of each model: the file before slimming, and the QDQ graph as it is written.
    assert (runs["litert"], runs["onnxruntime"]) == (2, 2)


def test_a_gate_that_cannot_hold_exits_1(torch: Done, store: Path, tmp_path: Path) -> None:
    done = optimize(
        "digits-torch", tmp_path, store, "gates=[{metric: size_bytes, max: 10 B, formats: [onnx]}]"
    )
    assert done.code == 1
    assert {gate["status"] for gate in done.report["gates"]} == {"fail"}
    assert all(row["status"] == "ok" for row in done.report["results"])


def test_a_crashed_branch_exits_3_and_the_others_are_reported(store: Path, tmp_path: Path) -> None:
    done = optimize(
        "digits-keras",
        tmp_path,
        store,
        "formats=[tflite]",
        "optimize.crash={stages: ['edgeopt.testing.toys:Abort', 'edgeopt.testing.toys:Finish']}",
        "gates=[{metric: top1, max_drop: 0.01}]",
    )
    assert done.code == 3
    crashed = done.row("crash", "tflite")
    assert crashed["status"] == "failed"
    assert "its process died with SIGABRT" in crashed["reason"]
    assert "Check failed: rank == 4" in crashed["reason"]
    assert done.row("float", "tflite")["status"] == done.row("int8", "tflite")["status"] == "ok"
    verdicts = {gate["variant"]: gate["status"] for gate in done.report["gates"]}
    assert verdicts == {"float": "pass", "int8": "pass", "crash": "fail"}


def test_a_collapsed_artifact_is_never_reported_as_fine(store: Path, tmp_path: Path) -> None:
    """A stage that ruins the weights costs its branch, by the name of the step that did it."""
    done = optimize(
        "digits-keras",
        tmp_path,
        store,
        "formats=[onnx]",
        "optimize={ruined: {stages: [keras_to_onnx, 'edgeopt.testing.toys:Ruin']}}",
        "gates=[]",
    )
    assert done.code == 3
    row = done.row("ruined", "onnx")
    assert row["status"] == "failed"
    assert row["reason"].startswith("edgeopt.testing.toys:Ruin broke the model: SNR ")
    assert row["measurements"]["top1"]["value"] < 0.3


def test_a_file_that_is_no_model_costs_its_branch(store: Path, tmp_path: Path) -> None:
    done = optimize(
        "digits-keras",
        tmp_path,
        store,
        "formats=[tflite]",
        "optimize={x: {stages: ['edgeopt.testing.toys:Finish']}}",
        "gates=[]",
    )
    assert done.code == 3
    assert done.row("float", "tflite")["status"] == "ok"
    assert "rejected" in done.row("x", "tflite")["reason"]


def test_killed_in_the_middle_it_resumes_to_the_same_artifacts(torch: Done, tmp_path: Path) -> None:
    out, fresh = tmp_path / "out", tmp_path / "store"
    process = subprocess.Popen(
        command("digits-torch", out, fresh, "formats=[onnx, torchscript]", "gates=[]"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("✓") and "exported_program_to_onnx" in line:
            break
    time.sleep(0.5)  # into the next stages
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()

    again = optimize("digits-torch", out, fresh, "formats=[onnx, torchscript]", "gates=[]")
    assert again.code == 0, again.err
    assert "=   cached  float.onnx               exported_program_to_onnx" in again.err
    undisturbed = torch.digests()
    assert again.digests() == {name: undisturbed[name] for name in again.digests()}
    assert len(again.digests()) == 4
    assert Store(fresh).damaged == []
    assert list((fresh / "scratch").iterdir()) == []


def test_labels_out_of_range_exit_2_and_finished_work_stays(
    write_recipe: Callable[..., Path], store: Path, tmp_path: Path
) -> None:
    import numpy as np

    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8, 1), np.uint8), y=np.array([0, 1, 10, 2]))
    path = write_recipe(data="{evaluation: {uses: npz, with: {path: data.npz}}}")
    done = optimize(path, tmp_path / "out", store)
    assert done.code == 2
    assert "label 10" in done.err
    assert "sample 2" in done.err or "index 2" in done.err
    objects = list((store / "objects").glob("*/*/entry.json"))
    assert any("keras_to_tflite" in entry.read_text() for entry in objects)
