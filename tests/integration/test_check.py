"""A CI job on a real model: a worse model is blocked, a harmless change passes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from in_process import Edgeopt

pytestmark = pytest.mark.usefixtures("kept_workers")

NOISE = """
import sys
import numpy as np, tf_keras
model = tf_keras.models.load_model(sys.argv[1], compile=False)
x, y = (np.load(sys.argv[2])[name] for name in "xy")
random = np.random.default_rng(3)
weights = model.get_weights()
noise = [w.std() * random.standard_normal(w.shape) for w in weights]
before = (model(x).numpy().argmax(1) == y).mean()
for share in np.arange(0.01, 1, 0.005):
    model.set_weights([w + share * n for w, n in zip(weights, noise)])
    drop = before - (model(x).numpy().argmax(1) == y).mean()
    if drop >= 0.03:
        break
model.save(sys.argv[3])
print(drop)
"""


@pytest.fixture(scope="module")
def kws(tmp_path_factory: pytest.TempPathFactory, needs_real_data: Path) -> Callable[..., Path]:
    """Write a recipe for the keyword model, or for one made from it, judged on so many samples."""
    folder = tmp_path_factory.mktemp("kws")

    def write(name: str, model: Path | None = None, samples: int = 400) -> Path:
        data = needs_real_data / "kws" / "evaluation400.npz"
        if samples < 400:
            arrays = np.load(data)
            data = folder / f"{samples}.npz"
            np.savez(data, x=arrays["x"][:samples], y=arrays["y"][:samples])
        source = model or needs_real_data / "mlperf-tiny" / "kws_ref_model"
        calibration = needs_real_data / "kws" / "calibration100.npz"
        path = folder / f"{name}.yaml"
        path.write_text(
            f"version: 1\nname: kws\nmodel: {{path: {source}}}\n"
            f"data:\n  calibration: {{uses: npz, with: {{path: {calibration}}}}}\n"
            f"  evaluation: {{uses: npz, with: {{path: {data}}}}}\n"
            "metric: top1\noptimize: {int8: {quantize: int8}}\nformats: [tflite]\n"
            "latency: {min_runs: 5, min_seconds: 0}\n"
        )
        return path

    return write


def baseline(edgeopt: Edgeopt, folder: Path, recipe: Path) -> Path:
    run = folder / f"run-{recipe.stem}"
    assert edgeopt("optimize", recipe, "--out", run, "--store", folder / "store", "-q").code == 0
    file = folder / f"baseline-{recipe.stem}.json"
    assert edgeopt("baseline", "write", run, "--out", file).code == 0
    return file


@pytest.mark.slow
def test_a_worse_model_is_blocked_and_a_harmless_change_passes(
    edgeopt: Edgeopt, kws: Callable[..., Path], needs_real_data: Path, tmp_path: Path
) -> None:
    recipe = kws("good")
    committed = baseline(edgeopt, tmp_path, recipe)
    assert committed.stat().st_size < 4000

    data = needs_real_data / "kws" / "evaluation400.npz"
    source = needs_real_data / "mlperf-tiny" / "kws_ref_model"
    command = [sys.executable, "-c", NOISE, str(source), str(data), str(tmp_path / "worse.h5")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.03 <= float(made.stdout.split()[-1]) < 0.08
    blocked = edgeopt(
        "check", kws("worse", tmp_path / "worse.h5"), "--against", committed, "--max-drop", "0",
        "--store", tmp_path / "store", "--junit", "junit.xml", "--comment", "comment.md",
    )  # fmt: skip
    assert blocked.code == 1
    suite = ElementTree.parse(tmp_path / "junit.xml").find("testsuite")
    assert suite is not None
    assert int(suite.get("failures") or 0) >= 1
    comment = (tmp_path / "comment.md").read_text()
    assert "**worse than the baseline**" in comment
    assert "with 95% confidence, by more than +" in comment
    assert "exact McNemar p = " in comment

    # Slimming changes the file and not one output: the same model in other bytes.
    harmless = edgeopt(
        "check", recipe, "--against", committed, "--set", "optimize.int8.slim=false",
        "--store", tmp_path / "store", "--max-size-increase", "1", "--json",
    )  # fmt: skip
    assert harmless.code == 0, harmless.out + harmless.err
    assert {verdict["status"] for verdict in json.loads(harmless.out)} == {"pass"}


@pytest.mark.slow
def test_a_metric_of_the_whole_set_has_gates_and_a_baseline(
    edgeopt: Edgeopt, kws: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = kws("f1")
    recipe.write_text(
        recipe.read_text().replace("metric: top1", "metric: f1")
        + "gates:\n  - {metric: f1, max_drop: 0.1, confidence: 0.95}\n"
        "  - {metric: f1, max_drop: 0.001, confidence: 0.95, undecided: pass}\n"
    )
    committed = baseline(edgeopt, tmp_path, recipe)
    report = json.loads((tmp_path / "run-f1" / "report.json").read_text())
    statuses = {(verdict["variant"], verdict["limit"]): verdict["status"] for verdict in report["gates"]}
    assert statuses == {
        ("float", 0.1): "pass",
        ("int8", 0.1): "pass",
        ("float", 0.001): "undecided",
        ("int8", 0.001): "undecided",
    }
    for row in report["results"]:
        drop = row["measurements"]["f1_drop"]
        assert drop["ci95"][0] <= drop["value"] <= drop["ci95"][1]
        low, high = next(each["bounds"] for each in report["gates"] if each["variant"] == row["variant"])
        # The bounds allow for losses that no sample shows; the interval does not.
        assert low < drop["ci95"][0] and drop["ci95"][1] < high < 0.1
    unchanged = edgeopt("check", "run-f1", "--against", committed, "--json")
    assert unchanged.code == 0
    verdicts = json.loads(unchanged.out)
    assert [verdict["reason"] for verdict in verdicts if verdict["gate"].startswith("f1 ")] == [
        "unchanged: the predictions are identical (400 samples)"
    ] * 2


@pytest.mark.slow
def test_an_unchanged_artifact_passes_although_forty_samples_are_too_few(
    edgeopt: Edgeopt, kws: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = kws("few", samples=40)
    committed = baseline(edgeopt, tmp_path, recipe)
    told = edgeopt("check", recipe, "--against", committed, "--store", tmp_path / "store", "--json")
    assert told.code == 0, told.out + told.err
    drops = [verdict for verdict in json.loads(told.out) if "max_drop" in verdict["gate"]]
    assert {verdict["status"] for verdict in drops} == {"pass"}
    assert all(verdict["reason"].startswith("unchanged: ") for verdict in drops)


def test_the_old_file_is_run_again_in_turns(edgeopt: Edgeopt) -> None:
    usual = ("--store", "store", "--set", "formats=tflite", "--set", "gates=[]")
    slow = ("--set", "optimize.int8={quantize: {scheme: int8x16}}")  # which has reference kernels only
    assert edgeopt("optimize", "digits-keras", *usual, "--out", "old").code == 0
    assert edgeopt("optimize", "digits-keras", *usual, *slow, "--out", "new").code == 0
    assert edgeopt("baseline", "write", "old", "--out", "b.json").code == 0
    asked = ("--against", "b.json", "--max-size-increase", "1", "--max-latency-ratio", "3", "--json")
    done = edgeopt("check", "new", *asked, "--store", "store")
    verdicts = {v["variant"]: v for v in json.loads(done.out) if v["gate"] == "latency_ratio max 3"}
    assert done.code == 1
    assert (verdicts["float"]["status"], verdicts["float"]["reason"]) == ("pass", "the same file")
    assert verdicts["int8"]["status"] == "fail" and verdicts["int8"]["measured"] > 3
    done = edgeopt("check", "new", *asked, "--store", "empty")
    assert done.code == 0
    assert "not judged: int8.tflite on host: the baseline's file is no longer in the store" in done.err
