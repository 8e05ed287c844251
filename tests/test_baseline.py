"""Baselines: small, diff-friendly, and compared in pairs with a confidence."""

import base64
import json
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import Result as Outcome
from typer.testing import CliRunner

from edgeopt.cli import app
from edgeopt.errors import UsageError
from edgeopt.evaluation import regression
from edgeopt.evaluation.baseline import baseline_of, differences, read_baseline, write_baseline
from edgeopt.evaluation.judge import judge
from edgeopt.evaluation.regression import Limits, check
from edgeopt.reports import write_report
from edgeopt.results import Artifact, Gate, MetricInfo, Report, Result, Run, Samples
from edgeopt.results.recommendation import recommend

RECIPE = """
model: {weights: /home/a/net.pth, preprocess: {scale: 1/255, std: [0.37]}, labels: [a, b]}
metric: top1
"""


def run(
    right: np.ndarray,
    *,
    size: int = 1000,
    recipe: str = "kws",
    data: str = "d" * 64,
    document: str = RECIPE,
    judging_code: dict[str, str] = {"code of metric cost": "a" * 64},  # noqa: B006 - never changed
    **row: Any,
) -> Report:
    result = Result(
        **{
            "variant": "int8",
            "format": "tflite",
            "device": "host",
            "status": "ok",
            "runtime": "litert 2.3.0",
            "artifact": Artifact(path="models/int8.tflite", digest="ab" * 32, size_bytes=size),
            "measurements": {
                "size_bytes": {"value": size, "unit": "bytes"},
                "top1": {"value": float(right.mean()), "n": len(right)},
                "latency_p50_ms": {"value": np.random.default_rng().random(), "unit": "ms"},
            },
            "samples": {"top1": Samples.pack(right.astype(np.float64))},
        }
        | row
    )
    told = Run(
        started="2026-01-01",
        seconds=1,
        command="",
        edgeopt="0",
        evaluation_digest=data,
        document=document,
        judging_code=judging_code,
        samples=len(right),
    )
    return Report(recipe=recipe, run=told, environment={"host": {"cpu": "x"}}, results=(result,))


def right(count: int = 400, wrong: int = 40) -> np.ndarray:
    values = np.ones(count)
    values[:wrong] = 0
    return values


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 10_000])
def test_values_of_samples_come_back_exactly(count: int) -> None:
    bits = np.random.default_rng(count).integers(0, 2, count).astype(np.float64)
    packed = Samples.pack(bits)
    assert packed.encoding == "bits"
    assert np.array_equal(packed.unpack(), bits)
    other = np.random.default_rng(count).random(count)
    assert np.allclose(Samples.pack(other).unpack(), other, atol=1e-7)


def test_values_beyond_float32_and_those_that_are_no_numbers() -> None:
    assert np.isfinite(Samples.pack(np.array([1e300, -1e300, 0.5])).unpack()).all()
    hostile = Samples.pack(np.array([0.5, 0.25])).model_copy(
        update={"data": base64.b64encode(zlib.compress(struct.pack("<2f", 0.5, math.nan))).decode()}
    )
    with pytest.raises(ValueError, match="damaged per-sample values: not all are finite"):
        hostile.unpack()


@pytest.mark.parametrize("wrong", [{"data": "!!"}, {"data": "AAAA"}, {"count": 99}, {"encoding": "float32"}])
def test_damaged_values_are_told(wrong: dict[str, Any]) -> None:
    packed = Samples.pack(right(40)).model_copy(update=wrong)
    with pytest.raises(ValueError, match="damaged per-sample values"):
        packed.unpack()


def test_a_baseline_is_small_and_the_same_run_writes_the_same_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(10_000) < 0.9
    for name in ("one.json", "two.json"):
        write_baseline(baseline_of(run(values)), tmp_path / name)
    # Latency differs between runs and is not stored.
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.json").stat().st_size < 3000
    assert read_baseline(tmp_path / "one.json").entries[0].measurements == {
        "size_bytes": 1000,
        "top1": pytest.approx(values.mean()),
    }


def test_a_harmless_change_passes_and_a_worse_one_says_how_sure_it_is() -> None:
    baseline = baseline_of(run(right()))
    same = check(run(right()), baseline, Limits())
    assert [verdict.status for verdict in same] == ["pass", "pass"]
    assert same[0].reason == "unchanged: the predictions are identical (400 samples)"
    assert (same[0].p_value, same[0].bounds) == (1.0, pytest.approx((-0.0075, 0.0075), abs=1e-4))
    worse, size = check(run(right(wrong=60)), baseline, Limits())
    assert (worse.status, worse.blocks, worse.measured) == ("fail", True, pytest.approx(0.05))
    assert worse.p_value == pytest.approx(2**-20)
    assert "worse by 5.00 pt on 400 samples (20 worse, 0 better)" in worse.reason
    assert "exact McNemar p = 9.5e-07" in worse.reason
    other = Artifact(path="models/int8.tflite", digest="cd" * 32, size_bytes=1000)
    better, _ = check(run(right(wrong=20), artifact=other), baseline, Limits())
    # In the unit of the tables, and with a word for the direction.
    assert better.reason.startswith(
        "better by 5.00 pt on 400 samples (0 worse, 20 better); with 95% confidence, by more than +3.33 pt "
    )
    assert size.status == "pass"


def test_forty_samples_do_not_decide() -> None:
    other = Artifact(path="models/int8.tflite", digest="cd" * 32, size_bytes=1000)
    changed = run(np.roll(right(40, 4), 1), artifact=other)
    verdict, _ = check(changed, baseline_of(run(right(40, 4))), Limits())
    assert (verdict.status, verdict.blocks) == ("undecided", True)
    assert (verdict.samples_needed or 0) > 299
    assert verdict.reason.endswith(f"about {verdict.samples_needed:,} samples would decide it")
    lenient, _ = check(changed, baseline_of(run(right(40, 4))), Limits(undecided="pass"))
    assert (lenient.status, lenient.blocks) == ("undecided", False)


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_an_unchanged_artifact_passes_however_few_the_samples(count: int, limit: float) -> None:
    baseline, limits = baseline_of(run(right(count, 1))), Limits(max_drop=limit)
    other = Artifact(path="models/int8.tflite", digest="cd" * 32, size_bytes=1000)
    for report in (run(right(count, 1)), run(right(count, 1), artifact=other)):
        verdict, _ = check(report, baseline, limits)
        assert (verdict.status, verdict.blocks, verdict.samples_needed) == ("pass", False, None)
        assert verdict.reason == f"unchanged: the predictions are identical ({count} samples)"


def test_the_same_file_passes_unless_it_is_worse_beyond_doubt() -> None:
    baseline = baseline_of(run(right()))
    flicker, _ = check(run(np.roll(right(), 1)), baseline, Limits(max_drop=0.0))
    assert (flicker.status, flicker.reason) == ("pass", "unchanged: the same file")
    broken, _ = check(run(right(wrong=80)), baseline, Limits())
    assert (broken.status, broken.blocks) == ("fail", True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"document": RECIPE.replace("0.37", "0.27")}, "model.preprocess.std changed"),
        ({"document": RECIPE.replace("[a, b]", "[b, a]")}, "model.labels changed"),
        ({"document": RECIPE + "task: {uses: ctc}"}, "task.uses changed"),
        ({"runtime": "litert 2.4.0"}, "the runtime changed from litert 2.3.0 to litert 2.4.0"),
        ({"document": ""}, "the report does not say how it was judged"),
        ({"judging_code": {"code of metric cost": "b" * 64}}, "code of metric cost changed"),
        (
            {"judging_code": {"code of task x": "c" * 64, "code of metric cost": "a" * 64}},
            "the baseline does not record code of task x",
        ),
    ],
)
def test_the_same_file_is_judged_if_anything_else_changed(changes: dict[str, Any], told: str) -> None:
    baseline = baseline_of(run(right(wrong=4)))
    changed = run(right(wrong=11), **changes)
    (change,) = regression.changes(changed, baseline, Limits())
    assert change.verdicts[0].status == "undecided"
    assert change.verdicts[0].reason.startswith(f"the same file, but {told}: worse by 1.75 pt on 400 samples")
    assert not change.unchanged
    (same,) = regression.changes(run(right(wrong=4), **changes), baseline, Limits())
    assert same.unchanged
    # Of another file, both changes are said.
    other = run(right(wrong=11), **changes, artifact=Artifact(path="m", digest="cd" * 32, size_bytes=1000))
    assert check(other, baseline, Limits())[0].reason.startswith(f"{told}: worse by 1.75 pt")
    elsewhere = RECIPE.replace("/home/a", "/builds/b")
    verdict, _ = check(run(right(wrong=5), document=elsewhere), baseline, Limits())
    assert verdict.reason == "unchanged: the same file"


def test_a_baseline_that_does_not_record_how_files_were_judged_is_read_and_excuses_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline_of(run(right(wrong=4))), path)
    record = json.loads(path.read_text())
    assert record.pop("judging")["model.preprocess.std"] == "[0.37]"
    del record["entries"][0]["runtime"]
    path.write_text(json.dumps(record))
    old = read_baseline(path)
    verdict, _ = check(run(right(wrong=11)), old, Limits())
    assert verdict.reason.startswith(
        "the same file, but the baseline does not say how it was judged: worse by 1.75 pt"
    )
    assert [each.status for each in check(run(right(wrong=4)), old, Limits())] == ["pass", "pass"]
    assert differences(old, baseline_of(run(right(wrong=4)))) == []


def test_many_labels_are_recorded_by_their_digest() -> None:
    many = baseline_of(run(right(), document=RECIPE.replace("[a, b]", str(list(range(1000))))))
    assert many.judging is not None
    assert many.judging["model.labels"].startswith("sha256 ")


def test_a_file_that_grew_is_told() -> None:
    _, size = check(run(right(), size=1100), baseline_of(run(right())), Limits())
    assert (size.status, size.reason) == ("fail", "1,000 B became 1,100 B, +10.0%")
    _, size = check(run(right(), size=1020), baseline_of(run(right())), Limits())
    assert size.status == "pass"


def test_an_artifact_that_is_gone_or_broke_fails() -> None:
    baseline = baseline_of(run(right()))
    (gone,) = check(run(right(), variant="other"), baseline, Limits())
    assert (gone.status, gone.reason) == ("fail", "the run has no such artifact")
    assert gone.gate == "artifact is still built"
    (broke,) = check(run(right(), status="failed", reason="why\nmore"), baseline, Limits())
    assert (broke.status, broke.reason) == ("fail", "failed: why")
    lost = run(
        right(), status="failed", reason="two.pth does not match the model:\n  unexpected: b.bias\n  x"
    )
    (verdict,) = check(lost, baseline, Limits())
    assert verdict.reason == "failed: two.pth does not match the model: unexpected: b.bias"
    (gate,) = judge([Gate(metric="top1", max_drop=0.01)], lost.results)
    assert gate.reason == "not measured: two.pth does not match the model: unexpected: b.bias"
    (shipped,) = recommend(lost.results, [gate])
    assert shipped.reason.endswith("int8.tflite: two.pth does not match the model: unexpected: b.bias")


def test_what_does_not_fit_is_refused() -> None:
    baseline = baseline_of(run(right()))
    with pytest.raises(UsageError, match="of recipe 'kws', the run of 'other'"):
        check(run(right(), recipe="other"), baseline, Limits())
    with pytest.raises(UsageError, match=r"dddddddddddddddd, that of the run eeeeeeeeeeeeeeee"):
        check(run(right(), data="e" * 64), baseline, Limits())
    with pytest.raises(UsageError, match="no result of this run is ok: it cannot be a baseline; int8"):
        baseline_of(run(right(), status="failed", reason="x"))
    with pytest.raises(UsageError, match="evaluated no samples"):
        baseline_of(run(right(), samples={}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not a complete baseline"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "version 9, this edgeopt reads version 1"),
        (lambda text: "[]", "is not a complete baseline"),
        (lambda text: text.replace('"data": "', '"data": "AAAA'), "damaged per-sample values"),
        (lambda text: text.replace('"recipe"', '"recept"'), "recipe field required"),
    ],
)
def test_a_damaged_baseline_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline_of(run(right())), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UsageError, match=message):
        read_baseline(path)


def detected(lost: int = 0, *, reach: float = 2.0, count: int = 400, **changes: Any) -> Report:
    """A run whose metric is mAP; of some images, the contribution is lost."""
    values = np.random.default_rng(0).normal(0.8, 0.2, count) - (np.arange(count) < lost)
    value = {"value": float(values.mean()), "n": count, "kind": "fraction", "role": "quality"}
    row = {"measurements": {"map50": value}, "samples": {"map50": Samples.pack(values, reach)}}
    return run(right(count), **row, **changes)


def test_a_metric_of_the_whole_set_is_compared_by_contributions(tmp_path: Path) -> None:
    path, other = tmp_path / "baseline.json", Artifact(path="m", digest="cd" * 32, size_bytes=1000)
    write_baseline(baseline_of(detected()), path)
    assert path.stat().st_size < 4000  # four bytes per sample
    baseline = read_baseline(path)
    (same,) = check(detected(artifact=other), baseline, Limits())
    assert (same.status, same.reason) == ("pass", "unchanged: the predictions are identical (400 samples)")
    (worse,) = check(detected(40, artifact=other), baseline, Limits())
    assert (worse.status, worse.measured, worse.p_value) == ("fail", pytest.approx(0.1), None)
    assert worse.reason.startswith("worse by 10.00 pt on 400 samples; with 95% confidence, by more than +")
    (few,) = check(detected(1, artifact=other), baseline, Limits(max_drop=0.015))
    assert (few.status, few.samples_needed is not None) == ("undecided", True)
    (heavy,) = check(detected(1, artifact=other, reach=8.0), baseline, Limits(max_drop=0.04))
    (light,) = check(detected(1, artifact=other), baseline, Limits(max_drop=0.04))
    assert (heavy.status, light.status) == ("undecided", "pass")
    # The heaviest sample is not known: 200 samples are too few.
    unknown = detected(1, artifact=other, reach=0.0, count=200)
    (verdict,) = check(unknown, baseline_of(detected(reach=0.0, count=200)), Limits())
    assert (verdict.status, verdict.bounds) == ("undecided", None)


def test_values_of_samples_are_not_compared_with_contributions() -> None:
    values = Samples.pack(np.random.default_rng(0).random(400))
    before = detected().results[0].model_copy(update={"samples": {"map50": values}})
    (verdict,) = check(
        detected(), baseline_of(detected().model_copy(update={"results": (before,)})), Limits()
    )
    assert (verdict.status, verdict.blocks) == ("fail", True)
    assert verdict.reason == "map50 is a mean over samples only in one of the two runs: update the baseline"


def test_the_baselines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline_of(run(right())), path)
    record = json.loads(path.read_text())
    # Values of samples without a reach are written as ever: a diff shows only what changed.
    assert set(record["entries"][0]["samples"]["top1"]) == {"count", "encoding", "data"}
    assert [verdict.status for verdict in check(run(right()), read_baseline(path), Limits())] == [
        "pass",
        "pass",
    ]


@pytest.mark.parametrize("reach", ["-1", "1e999", "NaN", '"2"x', "[]"])
def test_a_reach_that_is_no_number_is_refused(tmp_path: Path, reach: str) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline_of(detected()), path)
    path.write_text(path.read_text().replace('"reach": 2.0', f'"reach": {reach}'))
    with pytest.raises(UsageError, match="is not a complete baseline"):
        read_baseline(path)


def test_a_damaged_report_is_refused() -> None:
    row = detected().results[0]
    samples = {"map50": row.samples["map50"].model_copy(update={"data": "AAAA"})}
    damaged = detected().model_copy(update={"results": (row.model_copy(update={"samples": samples}),)})
    with pytest.raises(UsageError, match=r"the report is damaged: map50 of int8.tflite on host: damaged"):
        check(damaged, baseline_of(detected()), Limits())


def test_a_run_without_values_of_samples_says_so() -> None:
    info = MetricInfo(name="mine", kind="number", title="mine", better="higher", against="labels")
    silent = run(right(), samples={}).model_copy(update={"metrics": (info,)})
    with pytest.raises(UsageError, match="mine of this run has no value for a sample") as caught:
        baseline_of(silent)
    assert "return one number per sample from your function" in str(caught.value)


def test_an_update_shows_what_changes() -> None:
    old, new = baseline_of(run(right())), baseline_of(run(right(wrong=48), size=900))
    assert differences(old, new) == [
        "  int8.tflite on host: size_bytes 1000.0 -> 900.0",
        "  int8.tflite on host: top1 0.9 -> 0.88",
    ]
    other = baseline_of(run(right(), document=RECIPE.replace("0.37", "0.27")))
    assert differences(old, other) == ["  model.preprocess.std [0.37] -> [0.27]"]
    assert differences(old, baseline_of(run(right(), variant="new"))) == [
        "- int8.tflite on host",
        "+ new.tflite on host",
    ]


def edgeopt(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edgeopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_commands_of_a_pull_request(tmp_path: Path) -> None:
    other = Artifact(path="models/int8.tflite", digest="cd" * 32, size_bytes=1000)
    flicker = run(np.roll(right(), 1), artifact=other)
    for name, report in (("good", run(right())), ("bad", run(right(wrong=60))), ("flicker", flicker)):
        (tmp_path / name).mkdir()
        write_report(report, tmp_path / name)
    file = tmp_path / "baseline.json"
    assert edgeopt("baseline", "write", tmp_path / "good", "--out", file).returncode == 0
    fine = edgeopt("check", tmp_path / "good", "--against", file)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert fine.stdout.splitlines()[-1] == f"no worse than {file}: 2 of 2 pass"
    files = ("--junit", tmp_path / "junit.xml", "--comment", tmp_path / "comment.md")
    blocked = edgeopt("check", tmp_path / "bad", "--against", file, *files)
    assert (blocked.returncode, blocked.stderr) == (1, "")
    assert blocked.stdout.splitlines()[-1] == f"worse than {file}: 1 of 2 fails"
    suite = ElementTree.parse(tmp_path / "junit.xml").find("testsuite")
    assert suite is not None
    assert suite.get("failures") == "1"
    assert "**worse than the baseline**" in (tmp_path / "comment.md").read_text()
    assert "exact McNemar p = 9.5e-07" in (tmp_path / "comment.md").read_text()
    unsure = edgeopt("check", tmp_path / "flicker", "--against", file, "--max-drop", 0)
    assert unsure.returncode == 1
    last = f"undecided whether worse than {file}: 1 of 2 pass, 1 undecided"
    assert unsure.stdout.splitlines()[-1] == last
    updated = edgeopt("check", tmp_path / "bad", "--against", file, "--update")
    assert updated.returncode == 0
    assert "top1 0.9 -> 0.85" in updated.stdout
    assert edgeopt("check", tmp_path / "bad", "--against", file).returncode == 0
    assert edgeopt("check", tmp_path / "bad", "--against", tmp_path / "none.json").returncode == 2
    assert edgeopt("check", tmp_path / "bad", "--against", file, "--confidence", 7).returncode == 2


def checked(*arguments: object) -> Outcome:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_a_narrowed_check_compares_that_part_of_a_run(tmp_path: Path) -> None:
    one, broken = run(right()), run(right(), variant="int8", format="onnx", status="failed", reason="x")
    base = run(right(), variant="float")
    every = one.model_copy(update={"results": (*base.results, *one.results, *broken.results)})
    write_report(every, tmp_path / "run")
    was = run(right(wrong=2), format="onnx")
    write_baseline(
        baseline_of(every.model_copy(update={"results": (*every.results[:2], *was.results)})),
        path := tmp_path / "b.json",
    )
    for narrowed, code, count in (
        ((), 3, 5),
        (("--format", "tflite"), 0, 4),
        (("--variant", "float"), 0, 2),
        (("--variant", "int8", "--format", "onnx"), 3, 1),
        (("--device", "host", "--variant", "int8", "--format", "tflite"), 0, 4),
    ):
        done = checked(tmp_path / "run", "--against", path, "--json", *narrowed)
        assert (done.exit_code, len(json.loads(done.stdout))) == (code, count), narrowed
    wrong = checked(tmp_path / "run", "--against", path, "--variant", "flot").exception
    assert str(wrong).startswith("--variant flot: the run has no such variant; did you mean 'float'?")
    wrong = checked(tmp_path / "run", "--against", path, "--device", "phone").exception
    assert "the baseline has nothing for --device phone; it has float.tflite on host, int8" in str(wrong)


def test_a_baseline_of_a_part_of_a_run(tmp_path: Path) -> None:
    other = run(right(wrong=9), variant="int8", format="onnx")
    whole = run(right()).model_copy(update={"results": (*run(right()).results, *other.results)})
    write_report(whole, tmp_path / "run")
    words = ["baseline", "write", str(tmp_path / "run"), "--out", str(tmp_path / "b.json")]
    assert CliRunner().invoke(app, [*words, "--format", "onnx"]).exit_code == 0
    assert [entry.key for entry in read_baseline(tmp_path / "b.json").entries] == [("int8", "onnx", "host")]
    wrong = CliRunner().invoke(app, [*words, "--format", "onxx"])
    assert "--format onxx: the run has no such format; did you mean 'onnx'?" in str(wrong.exception)


def test_an_update_of_a_part_leaves_the_rest(tmp_path: Path) -> None:
    one, two = run(right(wrong=4)), run(right(wrong=9), variant="int8", format="onnx")
    write_baseline(
        baseline_of(one.model_copy(update={"results": (*one.results, *two.results)})),
        path := tmp_path / "b.json",
    )
    write_report(run(right(wrong=2)), tmp_path / "part")
    done = checked(tmp_path / "part", "--against", path, "--update", "--format", "tflite")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (
        0,
        "  int8.tflite on host: top1 0.99 -> 0.995",
    )
    after = {entry.key: entry.measurements["top1"] for entry in read_baseline(path).entries}
    assert after == {("int8", "tflite", "host"): 0.995, ("int8", "onnx", "host"): 0.9775}
    # What concerns every artifact is not updated for one of them.
    write_report(run(right(), document=RECIPE.replace("0.37", "0.27")), tmp_path / "part")
    done = checked(tmp_path / "part", "--against", path, "--update", "--format", "tflite")
    assert "a part of the baseline cannot be updated: how files are judged changed" in str(done.exception)
    assert getattr(done.exception, "fix", "") == "update it as a whole, without --format"
    assert checked(tmp_path / "part", "--against", path, "--update").exit_code == 0
    assert len(read_baseline(path).entries) == 1


def test_a_check_imports_no_framework(tmp_path: Path) -> None:
    write_report(run(right(10_000)), tmp_path)
    edgeopt("baseline", "write", tmp_path, "--out", tmp_path / "baseline.json")
    code = (
        "import sys\n"
        f"sys.argv = ['edgeopt', 'check', {str(tmp_path)!r}, '--against', '{tmp_path}/baseline.json']\n"
        "from edgeopt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'tensorflow', 'onnx', 'onnxruntime', 'keras'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
