"""Several runs side by side: what changed, what is missing, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeopt.cli import app
from edgeopt.errors import UsageError
from edgeopt.reports import write_report
from edgeopt.reports.comparison import Compared, Comparison, as_data, change_text, compare
from edgeopt.reports.comparison.page import render
from edgeopt.results import MetricInfo, Report, Result, Run, Samples, Verdict

HOST = {"host": {"cpu": "Xeon"}}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "{{ data }} {{ policy }}",
    "\x00\x1b[31m\ud800",
    "x" * 10_000,
)


def result(wrong: int = 0, form: str = "tflite", size: float = 1000, **changes: Any) -> Result:
    right = np.ones(400)
    right[:wrong] = 0
    values = {
        "size_bytes": {"value": size, "kind": "bytes"},
        "top1": {"value": float(right.mean()), "kind": "fraction", "role": "quality"},
        "latency_p50_ms": {"value": 1.5, "kind": "time"},
        "fidelity_snr_db": {"value": 30.0, "kind": "decibel", "role": "fidelity"},
    }
    usual: dict[str, Any] = {
        "variant": "int8",
        "format": form,
        "device": "host",
        "status": "ok",
        "measurements": values,
        "samples": {"top1": Samples.pack(right)},
    }
    return Result(**(usual | changes))


def run(
    *rows: Result, recipe: str = "kws", data: str = "d" * 64, document: str = "", **changes: Any
) -> Report:
    told = Run(
        started="2026-01-01",
        seconds=1,
        command="",
        edgeopt="0",
        evaluation_digest=data,
        document=document,
        samples=400,
    )
    return Report(**({"recipe": recipe, "run": told, "environment": HOST, "results": rows} | changes))


def failed(form: str, reason: str) -> Result:
    return result(form=form, status="failed", reason=reason, measurements={}, samples={})


def side_by_side(*reports: Report) -> Comparison:
    return compare([Compared(name, report) for name, report in zip("abcd", reports, strict=False)])


def test_the_change_is_paired_and_has_the_sign_of_the_value() -> None:
    found = side_by_side(run(result()), run(result()), run(result(wrong=20)))
    (line,) = found.lines
    assert line.name == "int8.tflite on host"
    changes = [change_text(cell, found) for cell in line.cells]
    assert changes[:2] == ["", "same"]
    assert changes[2].startswith("−5.00 pt (−7.")
    assert changes[2].endswith(" pt)")
    drop = as_data(found)["artifacts"][0]["runs"][2]["drop"]
    low, high = drop["bounds"]
    assert low < drop["value"] < high
    assert drop["value"] == pytest.approx(0.05)
    titles = ["top1", "size", "p50", "SNR"]
    assert [title for title, _ in found.shown] == titles


def test_what_failed_or_is_missing_is_shown() -> None:
    gate = Verdict(
        gate="top1 max_drop 0.01",
        variant="int8",
        format="onnx",
        device="host",
        status="fail",
        limit=0.01,
        blocks=True,
    )
    lost = run(result(), failed("onnx", "no kernel"), gates=(gate,))
    found = side_by_side(run(result(), result(form="onnx")), lost, run(result(form="pte")))
    cells = {line.key[1]: [(cell.status, cell.gate) for cell in line.cells] for line in found.lines}
    assert cells == {
        "tflite": [("ok", ""), ("ok", ""), ("absent", "")],
        "onnx": [("ok", ""), ("failed", "fail"), ("absent", "")],
        "pte": [("absent", ""), ("absent", ""), ("ok", "")],
    }
    reasons = [cell.reason for cell in found.lines[1].cells]
    assert reasons == ["", "no kernel", "the run has no such artifact"]
    # An earlier run in which everything failed is compared all the same.
    (line,) = side_by_side(run(failed("tflite", "no memory")), run(result())).lines
    assert [cell.status for cell in line.cells] == ["failed", "ok"]


def test_other_data_or_processors_are_not_subtracted() -> None:
    other = run(result(wrong=20), data="e" * 64, environment={"host": {"cpu": "EPYC"}})
    found = side_by_side(run(result()), other)
    assert [cell.change for cell in found.lines[0].cells] == [None, None]
    assert found.notes[:2] == (
        "b was evaluated on other data than a: their quality is not subtracted",
        "host has another processor in b: its latencies are not comparable",
    )


def test_what_differs_between_the_recipes_is_told() -> None:
    document = "model: {weights: %s/net.pth, preprocess: {scale: %s}}\noptimize: {float: {}%s}"
    first = run(result(), document=document % ("/home/a", "2/255", ""))
    other = run(result(), document=document % ("/builds/b", "1/255", ", int8: {quantize: int8}"))
    assert side_by_side(first, other).notes[0] == (
        "the recipe of b differs from that of a: "
        "model.preprocess.scale 2/255 -> 1/255, optimize.int8.quantize – -> int8"
    )
    assert len(side_by_side(first, first).notes) == len(side_by_side(first, run(result())).notes) == 1
    every = {f"v{number}": {"quantize": "x" * 99} for number in range(20)}
    many = run(result(), document=f"optimize: {json.dumps(every)}")
    note = side_by_side(first, many).notes[0]
    assert note.endswith(f" – -> {'x' * 57}... and 15 more")


def test_runs_without_labels_are_compared_by_their_fidelity() -> None:
    bare = {"agreement": {"value": 0.9, "kind": "fraction", "role": "fidelity"}, "size_bytes": {"value": 9}}
    found = side_by_side(*[run(result(measurements=bare, samples={}))] * 2)
    assert [title for title, _ in found.shown] == ["agreement", "size"]


def test_runs_of_another_recipe_or_metric_are_refused() -> None:
    with pytest.raises(UsageError, match="b is a run of recipe 'words', a of 'kws'"):
        side_by_side(run(result()), run(result(), recipe="words"))
    values = {"map50": {"value": 0.5, "kind": "fraction", "role": "quality"}}
    with pytest.raises(UsageError, match="b measures map50, a top1"):
        side_by_side(run(result()), run(result(measurements=values, samples={})))


def invoke(*words: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, ["compare", *map(str, words)])
    return done.exit_code, done.output, done.exception


def test_the_command(tmp_path: Path) -> None:
    for name, report in (
        ("a", run(result())),
        ("b", run(result(wrong=20))),
        ("c", run(failed("tflite", "no memory"))),
    ):
        write_report(report, tmp_path / name)
    code, text, _ = invoke(tmp_path / "a", tmp_path / "b", tmp_path / "c", "--out", tmp_path / "all.html")
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == "kws, compared with a"
    assert lines[3].split()[:6] == ["int8.tflite", "on", "host", "a", "ok", "100.00"]
    assert "int8.tflite on host in c: failed: no memory" in lines
    page = (tmp_path / "all.html").read_text("utf-8")
    assert '"link":"./b/report.html"' in page
    code, text, _ = invoke(tmp_path / "a", tmp_path / "b" / "report.json", "--json")
    assert [each["run"] for each in json.loads(text)["runs"]] == ["a", "b"]
    # Narrowed, also by what only one of the runs has.
    more = run(result(), result(format="onnx"))
    write_report(more, tmp_path / "d")
    _, text, _ = invoke(tmp_path / "a", tmp_path / "d", "--format", "onnx", "--json")
    assert "onnx" in text and '"tflite"' not in text
    _, _, error = invoke(tmp_path / "a", tmp_path / "d", "--format", "onxx")
    assert "--format onxx: the run has no such format; did you mean 'onnx'?" in str(error)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "one run is compared with nothing"),
        (["a", "a"], "a is given twice"),
        (["a", "good/../a/report.json"], "is given twice"),
        (["a", "none"], "no report in "),
        (["a", "goood"], "No such file or directory; did you mean 'good'?"),
    ],
)
def test_what_cannot_be_compared_is_a_message(tmp_path: Path, names: list[str], words: str) -> None:
    for name in ("a", "good"):
        write_report(run(result()), tmp_path / name)
    _, _, error = invoke(*(tmp_path / name for name in names))
    assert isinstance(error, UsageError)
    assert words in str(error)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("x/run", "y/run"):
        write_report(run(result()), tmp_path / name)
    _, text, _ = invoke(tmp_path / "x/run", tmp_path / "y/run", "--json")
    assert [each["run"] for each in json.loads(text)["runs"]] == [
        str(tmp_path / "x/run"),
        str(tmp_path / "y/run"),
    ]


@pytest.mark.parametrize("word", HOSTILE, ids=lambda word: ascii(word[:12]))
def test_hostile_names_are_text(word: str, tmp_path: Path) -> None:
    def page(name: str) -> str:
        rows = (result(variant=name, form=name, device=name), failed(name, name))
        report = run(
            *rows,
            recipe=name,
            metrics=(
                MetricInfo(name="top1", kind="fraction", title=name, better="higher", against="labels"),
            ),
        )
        found = compare([Compared(name, report), Compared("b", report)])
        return render(found, {name: tmp_path, "b": tmp_path}, tmp_path / "all.html")

    shown = page(word)
    shown.encode()
    assert shown.count("<") == page("name").count("<")
