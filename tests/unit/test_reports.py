"""The machine-readable forms of a report."""

import csv
import io
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from edgeopt.cli import app
from edgeopt.cli.report import read_report
from edgeopt.cli.screen.github import report_to_github
from edgeopt.errors import UsageError
from edgeopt.reports import RENDERERS, render, write_report
from edgeopt.results import Artifact, Report, Result, Run, Verdict, recommend

HOSTILE = "<script>alert('x')</script> & \x00\x1b[31m ]]> =1+1"
RUN = Run(started="2026-01-01T00:00:00+00:00", seconds=1.5, command="edgeopt optimize r.yaml", edgeopt="0")


def row(**changes: Any) -> Result:
    values = {"size_bytes": {"value": 1000.0, "unit": "bytes"}, "top1": {"value": 0.9, "n": 100}}
    usual: dict[str, Any] = {
        "variant": "int8",
        "format": "tflite",
        "device": "host",
        "status": "ok",
        "artifact": Artifact(path="models/int8.tflite", digest="ab" * 32, size_bytes=1000),
        "measurements": values,
    }
    return Result(**(usual | changes))


def verdict(status: str, **changes: Any) -> Verdict:
    usual: dict[str, Any] = {
        "gate": "top1 max_drop 0.01",
        "variant": "int8",
        "format": "tflite",
        "device": "host",
        "status": status,
        "limit": 0.01,
        "reason": "" if status == "pass" else "top1 dropped by 0.05",
        "blocks": status != "pass",
    }
    return Verdict(**(usual | changes))


@pytest.fixture
def report() -> Report:
    return Report(
        recipe="kws",
        run=RUN,
        results=(
            row(),
            row(format="onnx", status="failed", reason="=cmd()\nquantize_onnx: " + HOSTILE, artifact=None),
            row(device="board", status="skipped", reason="no answer", measurements={}),
        ),
        gates=(
            verdict("pass"),
            verdict("fail", format="onnx"),
            verdict("undecided"),
            verdict("undecided", blocks=False),
        ),
    )


def test_junit_has_a_case_per_gate_and_artifact(report: Report) -> None:
    suite = ElementTree.fromstring(render(report, "junit")).find("testsuite")
    assert suite is not None
    told = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert told == {"tests": "7", "failures": "2", "errors": "2", "skipped": "1"}
    cases = suite.findall("testcase")
    assert cases[0].attrib == {"classname": "kws.host", "name": "int8.tflite was built and measured"}
    assert cases[4].attrib["name"] == "int8.onnx: top1 max_drop 0.01"
    failure = cases[4].find("failure")
    assert failure is not None
    assert failure.get("message") == "fail: top1 dropped by 0.05"
    error = cases[1].find("error")
    assert error is not None
    assert "<script>alert('x')</script> & �" in (error.text or "")


def test_csv_has_a_row_per_artifact_and_no_formula(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert [(r["variant"], r["format"], r["device"], r["status"]) for r in rows] == [
        ("int8", "tflite", "host", "ok"),
        ("int8", "onnx", "host", "failed"),
        ("int8", "tflite", "board", "skipped"),
    ]
    assert (rows[0]["top1"], rows[0]["size_bytes"], rows[2]["top1"]) == ("0.9", "1000.0", "")
    assert rows[1]["reason"].startswith("'=cmd()")


def test_a_run_leaves_every_file(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        "devices/board.html",
        "devices/board.json",
        "devices/board.md",
        "devices/host.html",
        "devices/host.json",
        "devices/host.md",
        "junit.xml",
        "report.html",
        "report.json",
        "report.md",
    ]


@pytest.mark.parametrize("form", sorted(RENDERERS))
def test_every_form_is_shown_again(report: Report, tmp_path: Path, form: str) -> None:
    write_report(report, tmp_path)
    command = [sys.executable, "-m", "edgeopt", "report", str(tmp_path), "--format", form]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == render(report, form)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_report_that_was_cut_off_is_refused(report: Report, tmp_path: Path, share: float) -> None:
    text = render(report, "json").rstrip()
    (tmp_path / "report.json").write_text(text[: int(share * len(text))])
    for command in (["report", str(tmp_path)], ["check", str(tmp_path), "--against", "b.json"]):
        found = subprocess.run(
            [sys.executable, "-m", "edgeopt", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert found.returncode == 2
    with pytest.raises(UsageError, match="is not a complete report"):
        read_report(tmp_path)


def opened(
    monkeypatch: pytest.MonkeyPatch, *words: object, browser: bool = True
) -> tuple[int, str, list[str]]:
    """Exit code, output and opened addresses of ``edgeopt report``, with a browser or without."""
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: found.append(address) or browser)
    done = CliRunner().invoke(app, ["report", *map(str, words)])
    text = done.output + (str(done.exception) if isinstance(done.exception, UsageError) else "")
    return done.exit_code, text, found


def test_the_page_is_opened_and_its_path_printed(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(report, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    monkeypatch.setenv("DISPLAY", ":0")
    for run in (tmp_path / "run", tmp_path / "run" / "report.json"):
        assert opened(monkeypatch, run, "--open") == (0, f"{page}\n", [page.as_uri()])
    index = tmp_path / "index.html"
    assert opened(monkeypatch, "--index", tmp_path, "--open") == (0, f"{index}\n", [index.as_uri()])
    told = f"{page}\nno browser was found: open the file above yourself\n"
    assert opened(monkeypatch, tmp_path / "run", "--open", browser=False)[:2] == (0, told)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert opened(monkeypatch, tmp_path / "run", "--open") == (0, told, [])


def test_a_page_that_cannot_be_opened_is_a_message(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text(render(report, "json"))
    _, text, found = opened(monkeypatch, tmp_path, "--open")
    assert "report.html does not exist" in text
    assert "write a page: edgeopt report" in text
    _, text, _ = opened(monkeypatch, tmp_path, "--open", "--format", "md")
    assert "give only one of them" in text
    assert found == []


def test_the_report_of_one_device(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(report, tmp_path)
    monkeypatch.setenv("DISPLAY", ":0")
    page = tmp_path / "devices" / "board.html"
    assert opened(monkeypatch, tmp_path, "--open", "--device", "board")[2] == [page.as_uri()]
    _, text, _ = opened(monkeypatch, tmp_path, "--format", "csv", "--device", "board")
    assert [line.split(",")[2] for line in text.splitlines()] == ["device", "board"]
    _, text, _ = opened(monkeypatch, tmp_path, "--device", "bord")
    assert "the run has no device 'bord'; did you mean 'board'?" in text
    _, text, _ = opened(monkeypatch, "--index", tmp_path, "--device", "board")
    assert "leave out --device" in text


def test_a_notebook_shows_what_to_ship_and_the_tables(report: Report) -> None:
    judged = report.model_copy(update={"recommended": recommend(report.results, report.gates)})
    shown = judged.model_copy(update={"folder": Path("runs/kws")})._repr_html_()
    assert "ship nothing on host: int8.tflite is nearest" in shown
    assert "<td>int8</td><td>tflite</td><td>ok</td><td>90.00 %</td><td>1,000 B</td>" in shown
    assert "<code>runs/kws/report.html</code>" in shown
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_github_gets_a_summary_and_annotations(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report_to_github(report)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    report_to_github(report)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.partition(" ")[0] for line in lines] == ["::error"] * 4 + ["::warning"]
    assert lines[0].startswith("::error title=int8.onnx on host::failed: =cmd()%0Aquantize_onnx: <script>")
    assert lines[2] == ("::error title=top1 max_drop 0.01%3A int8.onnx on host::fail: top1 dropped by 0.05")
    assert (tmp_path / "summary.md").read_text().startswith("# kws\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kws.yaml").write_text("version: 1\noptimize:\n  int8: {}\ngates: []\n")
    report_to_github(report, "kws.yaml")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("::error file=kws.yaml,line=3,title=int8.onnx on host::")
    assert lines[2].startswith("::error file=kws.yaml,line=4,title=top1 max_drop")
