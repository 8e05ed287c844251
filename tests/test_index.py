"""The page of all runs: its content, unreadable folders, and its rendering in a browser."""

import datetime
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeopt.commands.optimize import point_latest
from edgeopt.errors import UsageError
from edgeopt.reports.history import read_runs
from edgeopt.reports.index import write_index
from edgeopt.results import Artifact, Report, Result
from large_report import large_report

FIRST = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def keep(folder: Path, number: int, report: Report | None = None, **changes: Any) -> Path:
    """A run ``number`` days after the first."""
    whole = report or large_report(variants=2, formats=2, devices=2, layers=2)
    run = whole.run.model_copy(update={"started": (FIRST + datetime.timedelta(days=number)).isoformat()})
    whole = whole.model_copy(update={"run": run, **changes})
    place = folder / f"run-{number:03d}"
    place.mkdir(parents=True)
    (place / "report.json").write_text(whole.model_dump_json(by_alias=True), "utf-8")
    (place / "report.html").write_text("a report", "utf-8")
    return place


def data(page: Path) -> Any:
    text = page.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_runs_stand_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        keep(tmp_path, number)
    keep(tmp_path, 0, recipe="other")
    (tmp_path / "latest").symlink_to("run-003")
    shown = data(write_index(tmp_path))
    assert [(recipe["name"], len(recipe["runs"])) for recipe in shown["recipes"]] == [
        ("words", 3),
        ("other", 1),
    ]
    words = shown["recipes"][0]
    assert [run["folder"] for run in words["runs"]] == ["run-001", "run-002", "run-003"]
    assert words["runs"][0]["link"] == "./run-001/report.html"
    assert (words["metric"], words["share"], words["devices"]) == ("top1", True, ["host", "raspberry-pi-4"])
    assert words["artifacts"][0] == ["float", "tflite"]
    artifact, device, top1, size, latency, processor = words["runs"][0]["points"][0]
    assert (artifact, device, top1, size, latency, processor) == (0, 0, 0.912, 396_000, 0.21, 0)
    assert words["runs"][0]["headline"] == "Passed"
    assert shown["damaged"] == []


def test_the_latest_run_is_the_last_that_built_something(tmp_path: Path) -> None:
    lost = Result(variant="int8", format="tflite", device="host", status="failed", reason="no kernel")
    kept = lost.model_copy(
        update={"status": "skipped", "artifact": Artifact(path="m", digest="ab", size_bytes=1)}
    )
    whole = large_report(variants=2, formats=2, devices=2, layers=2)
    for number, (row, latest) in enumerate(((lost, 0), (kept, 1), (lost, 1))):
        report = whole.model_copy(update={"results": (row,)})
        point_latest(keep(tmp_path, number, report), report)
        assert (tmp_path / "latest").readlink() == Path(f"run-{latest:03d}")


def test_a_damaged_run_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    whole = keep(tmp_path, 1) / "report.json"
    (tmp_path / "empty").mkdir()
    broken = {
        "cut": whole.read_text()[:5000],
        "list": "[]",
        "newer": json.dumps(json.loads(whole.read_text()) | {"schema": 9}),
        "undated": whole.read_text().replace("2026-01-02T", "soon"),
        "bytes": "\udcff",
    }
    for name, text in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    found, damaged = read_runs(tmp_path)
    assert [run.folder.name for run in found] == ["run-001"]
    told = {bad.folder.name: bad.reason for bad in damaged}
    assert set(told) == {*broken, "empty"}
    assert told["empty"] == "no report.json: the run is not finished, or was interrupted"
    assert told["newer"] == "report.json has version 9, this edgeopt reads version 1"
    assert told["cut"].startswith("report.json is not a complete report: invalid json: eof")
    assert told["undated"].startswith("report.json is not a complete report: run.started input should be")
    assert len(data(write_index(tmp_path))["damaged"]) == 6


def test_runs_of_ci_lie_deeper(tmp_path: Path) -> None:
    keep(tmp_path / "a1b2c3" / "model", 1)
    keep(tmp_path / "d4e5f6" / "model", 2)
    out = tmp_path / "pages" / "all.html"
    runs = data(write_index(tmp_path, out))["recipes"][0]["runs"]
    assert [run["folder"] for run in runs] == ["a1b2c3/model/run-001", "d4e5f6/model/run-002"]
    assert runs[0]["link"] == "./../a1b2c3/model/run-001/report.html"
    assert (out.parent / runs[0]["link"]).is_file()


def test_hostile_names_are_text(tmp_path: Path) -> None:
    word = "</script><script>alert(1)</script>"
    report = large_report(variants=1, formats=1, devices=1, layers=1)
    row = report.results[0].model_copy(update={"variant": word, "format": word, "device": word})
    keep(tmp_path / "javascript:x", 1, report, recipe=word, results=(row,))
    page = write_index(tmp_path)
    assert word not in page.read_text("utf-8")
    recipe = data(page)["recipes"][0]
    assert recipe["name"] == recipe["artifacts"][0][0] == recipe["devices"][0] == word
    assert recipe["runs"][0]["link"] == "./javascript%3Ax/run-001/report.html"


def test_two_hundred_runs_take_seconds(tmp_path: Path) -> None:
    first = keep(tmp_path, 0, large_report(variants=4, formats=4, devices=1))
    text = (first / "report.json").read_text()
    for number in range(1, 200):
        place = tmp_path / f"run-{number:03d}"
        place.mkdir()
        day = (FIRST + datetime.timedelta(days=number)).isoformat()
        (place / "report.json").write_text(text.replace(FIRST.isoformat(), day))
    began = time.process_time()
    page = write_index(tmp_path)
    assert time.process_time() - began < 5
    assert page.stat().st_size < 1_000_000
    assert len(data(page)["recipes"][0]["runs"]) == 200


def test_the_command_writes_it(tmp_path: Path) -> None:
    keep(tmp_path, 1)

    def report(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "edgeopt", "report", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = report("--index", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'index.html'}\n", "")
    assert report("--index", tmp_path, "--out", tmp_path / "all.html").returncode == 0
    assert (tmp_path / "all.html").read_text("utf-8") == (tmp_path / "index.html").read_text("utf-8")
    assert report("--index", tmp_path / "none").returncode == 2
    assert report(tmp_path / "run-001", "--out", tmp_path / "x").returncode == 2


def test_a_folder_that_cannot_be_read_or_written_is_a_message(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_index(tmp_path, tmp_path / "file" / "index.html")
    with pytest.raises(UsageError, match="no such folder"):
        write_index(tmp_path / "file")


playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def opened(tmp_path: Path) -> "Callable[..., Any]":
    """Six runs, and a damaged one: the data changes after the third, the processor after the fourth."""
    for number in range(6):
        report = large_report(variants=2, formats=2, devices=2, layers=2)
        run = report.run.model_copy(update={"evaluation_digest": ("aa" if number < 3 else "bb") * 32})
        cpu = {name: {"cpu": "old" if number < 4 else "new"} for name in report.environment}
        keep(tmp_path / "runs", number, report.model_copy(update={"run": run, "environment": cpu}))
    keep(tmp_path / "runs", 7, recipe="other")
    (tmp_path / "runs" / "cut").mkdir()
    return lambda: write_index(tmp_path / "runs")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_in_a_browser(opened: Callable[..., Path]) -> None:
    path = opened()
    complaints: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (380, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.get_by_label("recipe").input_value() == "0"
            assert page.locator("#runs tbody tr").count() == 1
            page.get_by_label("recipe").select_option(label="words (6 runs)")
            assert page.locator("#runs tbody tr").count() == 6
            assert page.locator("#charts canvas").count() == 3
            assert page.locator("#damaged").inner_text().count("no report.json") == 1
            gaps = """id => Chart.getChart(id).data.datasets[0].data
                .filter(point => Number.isNaN(point.y)).map(point => point.x)"""
            assert page.evaluate(gaps, "accuracy") == [2.5]
            assert page.evaluate(gaps, "size") == []
            assert page.evaluate(gaps, "latency") == [3.5]
            newest = page.locator("#newest tbody tr").first.inner_text().split()
            assert newest[0] == "float.tflite"
            assert "same" in newest
            found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
            grave = [
                (one["id"], one["nodes"][0]["html"])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert grave == []
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_label("format").select_option("onnx")
        page.get_by_label("variant").select_option("float")
        page.get_by_label("device").select_option(label="raspberry-pi-4")
        assert page.evaluate("Chart.getChart('size').data.datasets.map(set => set.label)") == ["float.onnx"]
        place = page.evaluate(
            """() => {
              const chart = Chart.getChart('size'), box = chart.canvas.getBoundingClientRect();
              const point = chart.getDatasetMeta(0).data[1];
              return [box.left + point.x, box.top + point.y];
            }"""
        )
        page.mouse.move(*place)
        assert page.evaluate("Chart.getChart('size').tooltip.title") == ["float.onnx"]
        page.mouse.click(*place)
        assert page.locator("#runs tr:focus").inner_text().startswith("2026-01-02")
        page.locator("#runs tr:focus a").click()
        assert page.url.endswith("/run-001/report.html")
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
