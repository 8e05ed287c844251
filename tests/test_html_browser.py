"""The report page in a real browser: interaction and accessibility."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeopt.evaluation.diagnosis import Diagnosis
from edgeopt.evaluation.layer_causes import Cause
from edgeopt.evaluation.layer_statistics import Comparison, LayerStatistics
from edgeopt.reports import html, write_report
from edgeopt.reports.comparison import Compared, compare
from edgeopt.reports.comparison.page import render as render_comparison
from edgeopt.reports.diagnosis import render as render_diagnosis
from edgeopt.reports.searching import render as render_search
from edgeopt.results import Artifact, Breakdown, GraphNode, Measurement, Recommendation, Report
from edgeopt.results.search import Judged, SearchResult, Tried
from large_report import RUN, large_report
from task_reports import CASES, task_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

Page = Any
COMBINATIONS = 96


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.render(large_report()), "utf-8")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All elements of the large one, fewer times."""
    path = tmp_path_factory.mktemp("page") / "small.html"
    path.write_text(
        html.render(large_report(variants=4, formats=3, devices=2, layers=5, pictures=4)), "utf-8"
    )
    return path


class Opened:
    """Opens pages, and fails the test if one logs an error or requests an external resource."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.contexts: list[Any] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def __call__(self, path: Path, width: int = 1280, scheme: str = "light") -> Page:
        context = self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(30_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        assert self.complaints == []
        wanted = [url for url in self.requests if not url.startswith(("file:", "data:"))]
        assert wanted == []
        assert sum(url.startswith("file:") for url in self.requests) == len(self.contexts)


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    opened = Opened(browser)
    yield opened
    opened.close()


def column(page: Page, title: str) -> list[str]:
    """Texts of a column of the table of all branches."""
    titles = page.locator("#results thead th").all_inner_texts()
    at = next(at for at, text in enumerate(titles, 1) if text.strip() == title)
    found: list[str] = page.locator(f"#results tbody tr > :nth-child({at})").all_inner_texts()
    return found


def place(page: Page, chart: str, number: int) -> tuple[float, float, int]:
    """Screen position of the ``number``-th cheapest point, from 0, and the number of points."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    found = page.evaluate(
        """([id, number]) => {
          const chart = Chart.getChart(id), box = chart.canvas.getBoundingClientRect();
          const places = chart.data.datasets.flatMap(
            (set, at) => set.silent ? [] : chart.getDatasetMeta(at).data);
          places.sort((a, b) => a.x - b.x);
          return [box.left + places[number].x, box.top + places[number].y, places.length];
        }""",
        [chart, number],
    )
    return found[0], found[1], found[2]


def serious(page: Page) -> list[str]:
    """What axe-core finds that is serious."""
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical")]


def test_sorting(opened: Opened, large: Path) -> None:
    page = opened(large)
    head = page.locator("#results thead th", has_text="size")
    assert head.get_attribute("aria-sort") == "none"
    recipe_order = column(page, "size")
    head.get_by_role("button").click()
    sizes = [float(text.rstrip(" B").replace(",", "")) for text in column(page, "size") if text != "–"]
    assert (len(sizes), sizes) == (94, sorted(sizes))
    assert column(page, "size")[94:] == ["–", "–"]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    falling = [float(text.rstrip(" B").replace(",", "")) for text in column(page, "size")[:94]]
    assert falling == sorted(sizes, reverse=True)
    assert column(page, "size")[94:] == ["–", "–"]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert column(page, "size") == recipe_order


def test_filters_narrow_table_and_charts(opened: Opened, large: Path) -> None:
    page = opened(large)
    assert page.locator("#count").inner_text() == f"{COMBINATIONS} of {COMBINATIONS} results"
    page.get_by_label("variant", exact=True).select_option("int8")
    page.get_by_label("device", exact=True).select_option("phone")
    assert page.locator("#count").inner_text() == f"4 of {COMBINATIONS} results"
    assert column(page, "format") == ["tflite", "onnx", "torchscript", "executorch"]
    assert page.locator("#size-front").get_attribute("aria-label") == "top1 against size, 4 points"
    # Latencies are those of the filtered device.
    assert page.locator("#latency-device").input_value() == "phone"
    page.get_by_label("text", exact=True).fill("TORCH int8")
    assert column(page, "format") == ["torchscript", "executorch"]
    page.get_by_label("text", exact=True).fill("no such thing")
    assert "No result matches" in page.locator("#results tbody").inner_text()
    assert page.locator("#fronts .empty").first.is_visible()
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("status", exact=True).select_option("skipped")
    assert column(page, "device") == ["phone"]
    page.get_by_label("status", exact=True).select_option("gate undecided")
    assert set(column(page, "variant")) == {"int8", "pruned-int8"}


def test_hovering_names_a_point_and_a_click_goes_to_its_row(opened: Opened, large: Path) -> None:
    page = opened(large)
    page.get_by_label("text", exact=True).fill("int8")
    page.locator("#size-front").hover(position={"x": 2, "y": 2})
    x, y, count = place(page, "size-front", 0)
    assert count == 8
    page.mouse.move(x, y)
    tip = page.evaluate(
        "(() => { const t = Chart.getChart('size-front').tooltip; return [t.opacity, t.title]; })()"
    )
    assert tip[1] == [
        f"pruned-int8.tflite on {name}" for name in ("host", "raspberry-pi-4", "phone", "cortex-m")
    ]
    page.mouse.click(x, y)
    focused = page.locator("#results tr:focus")
    assert focused.inner_text().split()[:3] == ["pruned-int8", "tflite", "host"]
    playwright.expect(focused).to_be_in_viewport()
    assert "found" in (focused.get_attribute("class") or "")


def test_the_keyboard_does_what_the_mouse_does(opened: Opened, large: Path) -> None:
    page = opened(large)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    chart = page.locator("#latency-front")
    chart.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    said = page.locator("#announcement").inner_text()
    assert said.startswith("Point 23 of 24: ")
    page.keyboard.press("Enter")
    row = page.locator("#results tr:focus")
    variant, form = row.inner_text().split()[:2]
    assert f"{variant}.{form} on host" in said
    row.get_by_role("link").press("Enter")
    details = page.locator("#devices details[open]")
    playwright.expect(details).to_have_count(1)
    told = details.inner_text()
    assert f"{variant} · {form}" in told
    for part in (
        "quantize_tflite",
        "95 % interval",
        "DEPTHWISE_CONV_2D",
        "Correct in the original model",
        "sha256",
    ):
        assert part in told
    details.get_by_role("link", name="Back to the table").click()
    playwright.expect(page.locator("#results tr:focus")).to_be_in_viewport()


def test_details_tell_of_samples_classes_layers_and_bytes(opened: Opened, small: Path) -> None:
    page = opened(small)
    # int8.onnx on host
    page.evaluate("location.hash = '#artifact-20'")
    inside = page.locator("#artifact-20 .inside")
    pictures = inside.locator(".gallery img")
    assert pictures.count() == 4
    for picture in pictures.all():
        playwright.expect(picture).to_have_js_property("complete", True)
    sizes = pictures.evaluate_all("all => all.map(one => [one.naturalWidth, one.naturalHeight])")
    assert sizes == [[48, 48]] * 4
    first = inside.locator(".gallery li").first.inner_text().split()
    assert first == "sample 0 worse label down this file go".split()
    told = inside.inner_text()
    assert "edgeopt diagnose recipes/words.yaml --variant int8 --format onnx" in told
    worst = inside.locator("table", has_text="Correct predictions per class").locator("tbody tr").first
    assert worst.inner_text().split() == ["down", "160", "93.8", "%", "87.5", "%", "−10"]
    matrix = inside.locator("table.matrix")
    assert matrix.locator("tbody tr").count() == 6
    assert matrix.locator("td.right .fewer").count() == 5
    layer = inside.locator("table", has_text="Sensitivity of the layers").locator("tbody tr").first
    assert layer.inner_text().split() == ["model/block_1", "29.2", "%", "+1,000", "B"]
    assert inside.locator("table", has_text="Size breakdown").locator("svg.bar").count() == 3
    own = inside.locator("table", has_text="Latency distribution").locator("tbody tr")
    assert [line.split()[0] for line in own.all_inner_texts()] == ["float.onnx", "int8.onnx"]
    page.locator("#made summary").click()
    assert "name: words" in page.locator("#made pre").inner_text()


def test_latencies_of_a_device_stand_on_one_scale(opened: Opened, small: Path) -> None:
    page = opened(small)
    page.locator("#device-0 summary", has_text="Latency distribution").click()
    bars = page.locator("#device-0 svg.spread rect")
    assert bars.count() == 11
    left = [float(bar.get_attribute("x")) for bar in bars.all()]
    told = page.locator("#device-0 .inside table tbody tr td:nth-child(4)").all_inner_texts()
    times = [float(text.split()[0]) * (1000 if text.endswith(" ms") else 1) for text in told]
    assert sorted(range(11), key=left.__getitem__) == sorted(range(11), key=times.__getitem__)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a microcontroller, which times nothing; int4 has lost its accuracy."""
    full = large_report(formats=2).of_device("cortex-m")
    rows = []
    for row in full.results:
        values = {name: one for name, one in row.measurements.items() if not name.startswith("latency")}
        if values:
            for end, code in (("min", 20_000), ("max", 40_000)):
                name = f"estimated_flash_{end}_bytes"
                values[name] = Measurement.of(name, values["size_bytes"].value + code)
        if row.variant == "int4":
            values["top1"] = values["top1"].model_copy(update={"value": 0.101})
        rows.append(row.model_copy(update={"measurements": values}))
    path = tmp_path_factory.mktemp("run") / "devices" / "cortex-m.html"
    path.parent.mkdir()
    path.write_text(html.render(full.model_copy(update={"results": tuple(rows)}), "../"), "utf-8")
    return path


def test_cards_say_what_to_ship(opened: Opened, board: Path) -> None:
    page = opened(board)
    card = page.locator("#cards article")
    assert card.locator("h2").inner_text() == "✓ Ship this on cortex-m"
    assert card.locator(".pick a").first.get_attribute("href") == "./../models/dynamic.tflite"
    assert card.locator("dd").all_inner_texts() == [
        "90.80 % (−0.40 pt against the original model, 95 % interval −1.30 pt to +0.60 pt)",
        "111,800 B (0.28 × float)",
        "54.6 KiB arena, 21 % of 256.0 KiB",
        "estimated 128.7 KiB to 148.2 KiB with the runtime, 14 % of 1.0 MiB",
    ]
    filled = [float(one.get_attribute("width") or 0) for one in card.locator(".gauge rect:last-child").all()]
    assert filled == pytest.approx([21.3, 14.5], abs=0.1)
    assert (
        "pull words --device cortex-m --variant dynamic --format tflite" in card.locator("code").inner_text()
    )
    card.get_by_role("link", name="all of its details").click()
    details = page.locator("details[open]")
    assert "dynamic" in details.locator("summary").first.inner_text()
    assert details.locator("dd a").first.get_attribute("href") == "./../models/dynamic.tflite"
    beside = page.locator("#made dd a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
    assert beside == ["#document", "./../report.json", "./../report.md", "./../run.log"]
    page.locator("#made dd a").first.click()
    playwright.expect(page.locator("#document pre")).to_be_visible()  # after the event of the address


def test_a_microcontroller_has_charts_of_its_memories(opened: Opened, board: Path) -> None:
    page = opened(board)
    titles = page.locator("#fronts h2").all_inner_texts()
    assert titles == ["top1 against size", "top1 against RAM", "top1 against flash"]
    drawn = page.evaluate(
        """() => ["size", "memory", "flash"].map((cost) => Chart.getChart(`${cost}-front`)).map((chart) => ({
          labels: chart.canvas.dataset.labels.split("\\n"), low: chart.scales.y.min,
          off: chart.data.datasets.flatMap((set) => set.data).filter((one) => one.off).length }))"""
    )
    for front in drawn:
        # The accuracy that int4 lost does not stretch the axis: an arrow says where it is.
        assert (front["off"], front["low"] > 0.85) == (2, True)
        assert "int4 ↓ 10.10 %" in front["labels"]
        assert {"float", "float16", "dynamic"} <= set(front["labels"])


def test_the_graph_of_a_file_is_coloured(opened: Opened, tmp_path: Path) -> None:
    """A residual block: the connection around it has a lane of its own."""
    reads = ((), (0,), (1,), (0, 2), (3,))
    graph = tuple(
        GraphNode(name=f"block{at}<b>", kind="Conv", size_bytes=1000 * at, macs=10, reads=each)
        for at, each in enumerate(reads)
    )
    whole = large_report(variants=1, formats=1, devices=1, layers=0)
    row = whole.results[0]
    assert row.artifact is not None
    file = row.artifact.model_copy(update={"breakdown": Breakdown(parts={"weights": 10_000}, graph=graph)})
    times = tuple({"layer": f"block{at}<b>", "operator": "Conv", "ms": 0.5 - at / 10} for at in range(4))
    row = row.model_copy(update={"artifact": file, "layers": (*times, {"layer": "copy", "ms": 0.002})})
    path = tmp_path / "graph.html"
    path.write_text(html.render(whole.model_copy(update={"results": (row,)})), "utf-8")
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = opened(path, width=width, scheme=scheme)
        page.locator("#artifact-0 summary").first.click()
        drawn = page.locator("svg.network")
        drawn.locator("g").last.wait_for()
        boxes = drawn.locator("g").evaluate_all(
            """all => all.map((one) => { const box = one.querySelector('rect').getBoundingClientRect();
              return [one.querySelector('rect').className.baseVal.at(-1), box.top, one.textContent]; })"""
        )
        assert [shade for shade, _, _ in boxes] == ["7", "6", "4", "3", "0"]
        tops = [top for _, top, _ in boxes]
        assert tops == sorted(tops)
        assert boxes[3][2].startswith("Conv block3<b>\ntime: 200 µs\nbytes: 2.93 KiB")
        assert drawn.locator("path").count() == 7  # the connection around the block has three parts
        assert "the highest: block0<b> (500 µs)" in drawn.get_attribute("aria-label")
        hint = page.locator("section[aria-label^=Graph] .hint")
        assert "Operators of the runtime that are not in the file: 2 µs." in hint.inner_text()
        page.get_by_label("coloured by", exact=True).select_option("bytes")
        assert "the highest: block4<b> (3.91 KiB)" in drawn.get_attribute("aria-label")
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert serious(page) == []


def test_a_diagnosis_is_a_page(opened: Opened, tmp_path: Path) -> None:
    names = [f"layer{at}" for at in range(3)]
    figures = dict.fromkeys(("snr_db", "own_snr_db", "alone_snr_db"), 40.0)
    figures |= {"mean_error": 0.0, "bias": 0.0, "minimum": 0.0, "maximum": 1.0}
    layers = tuple(
        LayerStatistics(name=name, operator="Conv", share=0.3 * at, **figures)
        for at, name in enumerate(names)
    )
    graph = tuple(
        GraphNode(name=name, kind="Conv", size_bytes=9, reads=(at - 1,) if at else ())
        for at, name in enumerate(names)
    )
    found = Diagnosis(
        recipe="words",
        variant="int8",
        format="onnx",
        data="calibration",
        comparison=Comparison(samples=64, snr_db=30.0, agreement=0.9, layers=layers),
        causes=(Cause(kind="unknown", text="the ranges of layer2"),),
        graph=graph,
    )
    path = tmp_path / "diagnosis.html"
    path.write_text(render_diagnosis(found), "utf-8")
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = opened(path, width=width, scheme=scheme)
        assert page.locator("#found li").all_inner_texts() == ["the ranges of layer2"]
        label = page.locator("svg.network").get_attribute("aria-label")
        assert label.endswith(
            "by error; the highest: layer2 (60.0 % of the error), layer1 (30.0 % of the error)"
        )
        assert page.locator("#layers tbody td:first-child").all_inner_texts() == names[::-1]
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert serious(page) == []


def test_columns_out_of_sight_are_named(opened: Opened, board: Path) -> None:
    page = opened(board, width=800)
    cue = page.locator("#results .cue")
    assert cue.inner_text().startswith("Scroll for → ")
    assert "arena" in cue.inner_text()
    box = page.locator("#results .scroll")
    box.evaluate("box => { box.scrollLeft = box.scrollWidth }")
    playwright.expect(cue).to_have_text(
        re.compile("^Scroll for ←")
    )  # its own polls need no eval, which is barred
    assert "arena" not in cue.inner_text()
    page = opened(board, width=1280)
    assert page.locator("#results .cue").is_hidden()


def test_rows_are_cards_on_a_phone(opened: Opened, board: Path) -> None:
    page = opened(board, width=390)
    row = page.locator("#results tbody tr").first
    cells = row.locator("td:not(.none)").evaluate_all(
        "all => all.map((one) => [getComputedStyle(one, '::before').content, one.textContent])"
    )
    assert ['"arena"', "193.4 KiB"] in cells
    tops = row.locator("td:not(.none)").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().top)"
    )
    assert tops == sorted(set(tops))
    assert page.locator("#results .cue").is_hidden()


def test_trials_of_searches_are_shown_when_asked_for(opened: Opened, large: Path) -> None:
    page = opened(large)
    assert place(page, "size-front", 0)[2] == 24
    page.get_by_label("search trials").check()
    assert place(page, "size-front", 0)[2] == 24 + 4 * 12


def test_light_and_dark(opened: Opened, large: Path) -> None:
    def shades(page: Page) -> tuple[int, str]:
        found = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " Chart.getChart('size-front').options.scales.x.ticks.color]"
        )
        return int(re.findall(r"\d+", found[0])[0]), found[1]

    light, light_ink = shades(opened(large))
    page = opened(large, scheme="dark")
    dark, dark_ink = shades(page)
    assert light > 200 and dark < 60 and light_ink != dark_ink
    page.get_by_role("button", name="Light colours").click()
    assert shades(page) == (light, light_ink)
    page.reload()
    assert shades(page) == (light, light_ink)
    opened.requests.remove(large.as_uri())


def test_a_phone_needs_no_sideways_scrolling(opened: Opened, large: Path) -> None:
    page = opened(large, width=380)
    page.get_by_role("button", name="Open all").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 380
    width = page.locator("#results .scroll").evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert width[0] == width[1]  # its rows are cards
    assert page.locator("#size-front").bounding_box()["width"] < 380


def test_printing_is_light_and_whole(opened: Opened, large: Path) -> None:
    page = opened(large, scheme="dark")
    page.evaluate(
        "addEventListener('beforeprint', () => { window.seen = document.documentElement.dataset.theme; })"
    )
    assert page.pdf()[:5] == b"%PDF-"
    assert page.evaluate("window.seen") == "light"
    assert page.evaluate("document.documentElement.dataset.theme") is None
    page.emulate_media(media="print")
    assert not page.locator(".filters").is_visible()
    assert page.locator("#results .scroll").evaluate("box => getComputedStyle(box).overflowY") == "visible"


@pytest.fixture(scope="module", params=CASES)
def of_task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The page of a report of each task."""
    path = tmp_path_factory.mktemp("task") / f"{request.param}.html"
    report = task_report(CASES[request.param](), (("float", 0.0), ("int8", 0.15)))
    path.write_text(html.render(report), "utf-8")
    return request.param, path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_task_shows_its_samples(
    opened: Opened, of_task: tuple[str, Path], width: int, scheme: str
) -> None:
    name, path = of_task
    page = opened(path, width=width, scheme=scheme)
    page.locator("#devices summary").nth(1).click()
    inside = page.locator("#artifact-1 .inside")
    samples = inside.locator(".gallery > li")
    samples.first.wait_for()
    assert 3 < samples.count() <= 12
    drawn = samples.first.locator("svg.picture")
    panes = {"detection": 3, "segmentation": 4, "keypoints": 3, "pictures": 3}.get(name, 0)
    assert drawn.count() == panes
    for svg in drawn.all():
        assert (svg.get_attribute("aria-label") or "").startswith("sample ")
        assert svg.bounding_box()["width"] > 90
    if not panes:
        told = samples.first.inner_text().split()
        assert "original" in told and "this" in told
    for image in page.locator("img").all():
        playwright.expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0
    assert all(image.get_attribute("alt") for image in inside.locator("img").all())
    assert all(chart.get_attribute("aria-label") for chart in inside.locator("svg.plotted:not(.key)").all())
    assert inside.locator("table", has_text="output").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Nothing sticks out of its card, except what scrolls inside it.
    outside = inside.evaluate(
        """inside => [...inside.querySelectorAll('.gallery > li, figure, .charts > *')].filter(one =>
             one.scrollWidth > one.clientWidth + 1 && !one.classList.contains('scroll')).length"""
    )
    assert outside == 0
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    grave = [
        (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_boxes_are_where_the_objects_are(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report = task_report(CASES["detection"](), (("float", 0.0), ("int8", 0.15)))
    path.write_text(html.render(report), "utf-8")
    page = opened(path)
    page.locator("#devices summary").nth(1).click()
    sample = report.results[1].findings[0].samples[0].sample
    (reference,) = [one for one in report.references if one.sample == sample]
    svg = page.locator("#artifact-1 .gallery svg.picture").first
    svg.wait_for()
    frame, boxes = svg.bounding_box(), svg.locator("g rect.halo").all()
    assert len(boxes) == len(reference.label.boxes) > 0
    assert report.image_size == (64, 64)
    for shown, box in zip(boxes, reference.label.boxes, strict=True):
        place = shown.evaluate("one => ['x', 'y', 'width', 'height'].map(name => one[name].baseVal.value)")
        x1, y1, x2, y2 = box.corners
        assert place == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
        outer, scale = shown.bounding_box(), frame["width"] / 64
        assert outer["x"] - frame["x"] == pytest.approx(x1 * scale, abs=3)
        assert outer["y"] - frame["y"] == pytest.approx(y1 * scale, abs=3)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (380, "dark")])
def test_axe_finds_nothing_serious(opened: Opened, small: Path, width: int, scheme: str) -> None:
    page = opened(small, width=width, scheme=scheme)
    page.locator("#devices details", has_text="int8").first.locator("summary").click()
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    grave = [
        (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_runs_are_compared_on_a_page(opened: Opened, tmp_path: Path) -> None:
    whole = large_report(variants=3, formats=2, devices=1)
    less = whole.model_copy(update={"results": whole.results[1:]})
    for name, report in (("first", whole), ("second", less)):
        write_report(report, tmp_path / name)
    found = compare([Compared("first", whole), Compared("second", less)])
    out = tmp_path / "all.html"
    out.write_text(
        render_comparison(found, {name: tmp_path / name for name in ("first", "second")}, out), "utf-8"
    )
    for width in (1280, 390):
        page = opened(out, width=width)
        assert page.locator("#runs h2").all_inner_texts() == ["first (reference)", "second"]
        assert page.locator("#runs a").first.get_attribute("href") == "./first/report.html"
        page.get_by_label("run", exact=True).select_option("second")
        assert page.locator("#count").inner_text() == "6 of 12 results"
        assert "float.tflite" in page.locator("#missing tbody").inner_text()
        labels = page.locator("#size-front").get_attribute("data-labels").split("\n")
        assert "float16.tflite" in labels
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert serious(page) == []


def searched(word: str = "best") -> SearchResult:
    """Three trials: the best one, one over its limit, and one that failed."""
    measured = ((9000.0, 0.004, -0.006, "best"), (5000.0, 0.05, 0.04, "over a limit"))
    trials = tuple(
        Tried(
            number=number,
            format="tflite",
            options={"quantize": {"scheme": "int8", "calibrator": word}},
            point=(number,),
            status="complete",
            samples=256,
            objectives={"size_bytes": size, "top1_drop": drop, "noise": 1e-3},
            excess={"top1 max_drop 0.01": over},
            place=place,
        )
        for number, (size, drop, over, place) in enumerate(measured)
    )
    failed = Tried(number=2, format="tflite", options={}, point=(2,), status="failed", reason=word)
    judged = Judged(
        variant=word,
        trial=0,
        format="tflite",
        selection={"top1_drop": 0.004},
        evaluation={"top1_drop": 0.012},
        optimism={"top1_drop": 0.008},
        passed=False,
    )
    return SearchResult(
        recipe="digits",
        variant=word,
        selection=word,
        samples=256,
        limits=("top1 max_drop 0.01",),
        minimize=("size_bytes",),
        loss="top1_drop",
        dimensions={"calibrator": (word, "mse")},
        points=24,
        trials=(*trials, failed),
        stopped="the budget of 3 trials is used up",
        notes=(word,),
        judged=(judged,),
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_click_on_a_trial_shows_its_recipe(opened: Opened, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "search.html"
    path.write_text(render_search(searched(), {"best": "front/best.yaml"}), "utf-8")
    for width in (1280, 390):
        page = opened(path, width=width, scheme=scheme)
        assert page.locator("#headline").inner_text() == (
            "Trial 1 is the best within the limits, as tflite: size_bytes 9,000 B"
        )
        assert page.locator("#count").inner_text() == "3 of 3 results"
        found = page.locator("#found tbody td").all_inner_texts()
        assert found[:3] == ["best", "trial 1", "tflite"] and found[-3:] == ["+0.40%", "+1.20%", "+0.80%"]
        assert page.locator("#found a").first.get_attribute("href") == "front/best.yaml"
        assert page.locator("#size_bytes-front").get_attribute("aria-label").endswith("2 points")
        page.locator("#row-1 a").click()
        shown = page.locator("#trial pre").inner_text()
        assert yaml.safe_load(shown)["optimize"] == {
            "trial-2": {"quantize": {"scheme": "int8", "calibrator": "best"}}
        }
        assert "top1 max_drop 0.01 by 0.04" in page.locator("#trial").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert serious(page) == []


def test_hostile_words_of_a_search_stay_text(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "search.html"
    path.write_text(render_search(searched("</script><img src=x onerror=alert(1)>")), "utf-8")
    page = opened(path)
    page.locator("#row-0 a").click()
    assert page.locator("img").count() == 0


def test_a_large_page_tells_when_it_is_ready(opened: Opened, large: Path) -> None:
    # The time is measured by benchmarks/page.py.
    assert opened(large).evaluate("Number(document.documentElement.dataset.ready)") > 0


@pytest.mark.parametrize(
    "word",
    [
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "javascript:alert(3)",
        "x" * 10_000,
    ],
)
def test_hostile_names_stay_text(opened: Opened, tmp_path: Path, word: str) -> None:
    changes = {"variant": word, "format": word, "device": word}
    report = large_report(variants=1, formats=1, devices=1, boxes=2)
    graph = tuple(GraphNode(name=word, kind=word, size_bytes=1, reads=range(at)) for at in range(3))
    file = Artifact(path=word, digest=word, size_bytes=9, breakdown=Breakdown(parts={word: 9}, graph=graph))
    results = tuple(
        row.model_copy(update={**changes, "notes": (word,), "reason": word, "artifact": file})
        for row in report.results
    )
    gates = tuple(verdict.model_copy(update={**changes, "reason": word}) for verdict in report.gates)
    path = tmp_path / "report.html"
    changed = report.model_copy(
        update={
            "recipe": word,
            "results": results,
            "gates": gates,
            "recommended": (Recommendation(status="ship", reason=word, **changes),),
            "environment": {word: {word: word}},
            "labels": (word,) * 6,
        }
    )
    path.write_text(html.render(changed), "utf-8")
    page = opened(path, width=380)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("h1").inner_text().startswith(word[:200])
    assert page.locator("#devices li").first.inner_text().startswith(word[:200])
    assert word[:180] in page.locator("#cards h2").inner_text()
    assert page.locator("svg.network g title").first.text_content().startswith(word[:200])
    links = page.locator("#cards .pick a").evaluate_all("all => all.map((one) => one.href)")
    assert all(link.startswith("file:") for link in links)
    assert page.evaluate("[document.scripts.length, document.images.length]") == [3, 0]
    assert page.evaluate("document.documentElement.scrollWidth") == 380


def test_an_empty_report_opens(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html.render(Report(recipe="nothing", run=RUN)), "utf-8")
    page = opened(path)
    assert "No gates" in page.locator("#verdict").inner_text()
    assert page.locator("#fronts .empty").count() == 2
