"""What a report shows of each task: samples that changed most, charts and outputs, bounded in size."""

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgeopt.cli.screen.tables import show_report
from edgeopt.evaluation.findings import MAX_CHARACTERS, Reader
from edgeopt.evaluation.hops import output_changes
from edgeopt.evaluation.metrics.average_precision import AveragePrecision
from edgeopt.evaluation.metrics.map50 import Map50
from edgeopt.evaluation.metrics.miou import Miou
from edgeopt.evaluation.tasks.classification import Classification
from edgeopt.evaluation.tasks.detection import Detection
from edgeopt.evaluation.tasks.multilabel import Multilabel
from edgeopt.evaluation.tasks.regression import Regression
from edgeopt.evaluation.tasks.segmentation import Segmentation
from edgeopt.evaluation.tasks.sequence import Sequence
from edgeopt.model import Outputs
from edgeopt.plugin import Decisions
from edgeopt.reports import html, markdown
from edgeopt.reports.columns import columns
from edgeopt.reports.pagedata import collect
from edgeopt.results import (
    Boxes,
    ByClass,
    Classes,
    Findings,
    Flip,
    Histogram,
    Mask,
    MetricInfo,
    Numbers,
    OutputChange,
    Picture,
    Plot,
    Points,
    Reference,
    Report,
    Result,
    SampleChange,
    Tokens,
)
from edgeopt.results.drawing import MAX_SIDE
from edgeopt.results.findings import MAX_BINS, MAX_CLASS_ROWS, MAX_CURVE, MAX_SAMPLES
from large_report import RUN, large_report
from task_reports import CASES, Case, detection, segmentation, task_report

WORSE = (("float", 0.0), ("int8", 0.15))


def findings(report: Report, index: int = -1) -> Findings:
    (found,) = report.results[index].findings
    return found


def page_of(report: Report, index: int = -1) -> Any:
    """The first task of an artifact, in the data of the page."""
    return collect(report)["rows"][index]["tasks"][0]


# Which samples


def scores_of(classes: list[int], margin: float = 1.0) -> Decisions:
    return Classification().decide(Outputs([margin * np.eye(4)[classes]]))


def test_samples_that_got_worse_come_first() -> None:
    labels = np.array([0, 1, 2, 3, 0])
    # The source is wrong for sample 1; the artifact is right there, and wrong for samples 3 and 4.
    reader = Reader(Classification(), scores_of([0, 2, 2, 3, 0]), labels)
    after = np.eye(4)[[0, 1, 2, 2, 1]]
    after[4] *= 9  # a larger change than that of sample 3
    found = reader.findings(Classification().decide(Outputs([after])))
    assert (found.changed, found.worse) == (3, 2)
    assert [(one.sample, one.worse) for one in found.samples] == [(4, True), (3, True), (1, False)]
    assert [one.agreement for one in found.samples] == [0, 0, 0]
    references = reader.references([1, 4])
    assert references[0] == Reference(sample=1, label=Classes.of([1], [None]), source=Classes.of([2], [None]))


def test_without_labels_the_least_agreement_comes_first() -> None:
    source = Decisions(np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    after = Decisions(np.array([[0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]]))
    found = Reader(Sequence(), source).findings(after)
    assert [(one.sample, one.agreement) for one in found.samples] == [(2, 0.5), (0, 0.75)]
    assert [one.worse for one in found.samples] == [None, None]
    assert (found.changed, found.worse) == (2, None)


def test_numbers_change_by_their_distance() -> None:
    source = Decisions(np.array([[1.0], [2.0], [3.0], [4.0]]))
    after = Decisions(np.array([[1.0], [2.5], [3.0000001], [np.nan]]))
    found = Reader(Regression(), source, np.array([[1.0], [2.4], [3.0], [4.0]])).findings(after)
    assert [(one.sample, one.error, one.worse) for one in found.samples] == [(3, None, True), (1, 0.5, False)]
    assert found.samples[0].artifact == Numbers(numbers=(None,), count=1)


def test_labels_of_another_form_are_left_out() -> None:
    reader = Reader(Detection(), Decisions([np.zeros((0, 6))]), np.array([3]))
    found = reader.findings(Decisions([np.array([[0, 0, 9, 9, 0.9, 1]])]))
    assert (found.changed, found.worse, found.charts) == (1, None, ())
    assert reader.references([0])[0].label is None


# Charts


def test_precision_and_recall_are_those_of_the_metric() -> None:
    case = detection()
    report = task_report(case, WORSE)
    outputs = case.worsen(case.outputs, 0.15, np.random.default_rng(0))
    for index, each in enumerate((case.outputs, outputs)):
        score = Map50().score(Detection().decide(each).values, case.targets).value
        curve, table = findings(report, index).charts
        assert isinstance(curve, Plot) and isinstance(table, ByClass)
        assert len(curve.x) == 101
        assert np.mean(curve.after) == pytest.approx(score, abs=1e-4)
        assert np.mean([row.after for row in table.rows]) == pytest.approx(score, abs=1e-4)
        assert sum(row.n for row in table.rows) == sum(map(len, case.targets))
    losses = [row.after - row.before for row in findings(report).charts[1].rows]
    assert losses == sorted(losses) and losses[0] < -0.5


def test_intersections_over_unions_are_those_of_the_metric() -> None:
    case = segmentation()
    (table,) = findings(task_report(case, WORSE)).charts
    outputs = case.worsen(case.outputs, 0.15, np.random.default_rng(0))
    score = Miou().score(Segmentation().decide(outputs).values, case.targets).value
    assert np.mean([row.after for row in table.rows]) == pytest.approx(score, abs=1e-4)
    # Pixels labelled 255 do not count.
    assert sum(row.n for row in table.rows) == case.targets.size - 4 * 64


def test_average_precisions_are_those_of_the_metric() -> None:
    case = CASES["multilabel"]()
    (table,) = findings(task_report(case, WORSE)).charts
    outputs = case.worsen(case.outputs, 0.15, np.random.default_rng(0))
    decisions = Multilabel().settled(case.outputs).decide(outputs)
    score = AveragePrecision().score(decisions.scores, case.targets).value
    assert np.mean([row.after for row in table.rows]) == pytest.approx(score, abs=1e-4)


def test_wrong_tokens_are_counted() -> None:
    source, labels = Decisions([np.array([1, 2]), np.array([3])]), [np.array([1, 2, -1]), np.array([4, 5])]
    after = Decisions([np.array([2]), np.array([3])])
    (chart,) = Sequence(decode="ctc").charts(after, source, labels)
    assert isinstance(chart, Histogram)
    assert (chart.edges, chart.before, chart.after) == ((-0.5, 0.5, 1.5, 2.5), (1, 0, 1), (0, 1, 1))
    (unlabelled,) = Sequence(decode="ctc").charts(after, source, None)
    assert (unlabelled.before, unlabelled.after) == (None, (1, 1))


def test_errors_are_values_minus_labels() -> None:
    labels, source = np.array([[1.0], [2.0]]), Decisions(np.array([[1.0], [2.5]]))
    dots, errors = Regression().charts(Decisions(np.array([[0.0], [np.inf]])), source, labels)
    assert (dots.x, dots.before, dots.after) == ((1.0, 2.0), (1.0, 2.5), (0.0, None))
    assert (sum(errors.before), sum(errors.after), errors.outside) == (2, 1, 1)
    assert (errors.edges[0], errors.edges[-1]) == (-1.0, 0.5)


# Drawings


def test_masks_are_sampled_and_read_again() -> None:
    values = np.arange(200 * 100).reshape(200, 100) % 300 - 1
    mask = Mask.of(values)
    assert (mask.height, mask.width) == (MAX_SIDE, 32)
    assert set(mask.unpack().ravel().tolist()) <= set(range(-1, 299))
    small = np.random.default_rng(0).integers(-1, 9, (7, 5))
    np.testing.assert_array_equal(Mask.of(small).unpack(), small)
    for damaged in (mask.model_copy(update={"data": "!"}), mask.model_copy(update={"height": 9})):
        with pytest.raises(ValueError, match="damaged picture"):
            damaged.unpack()


def test_values_of_the_shape_of_an_image_are_drawn_as_one() -> None:
    grey = np.random.default_rng(0).random((1, 16, 12))
    drawing = Regression().draw(Decisions(grey[None]), 0)
    assert isinstance(drawing, Picture)
    np.testing.assert_array_equal(drawing.unpack()[..., 0], np.rint(255 * grey[0]))
    bytes_ = Regression().draw(Decisions(255 * np.moveaxis(grey, 0, 2)[None]), 0)
    np.testing.assert_array_equal(bytes_.unpack(), drawing.unpack())
    assert isinstance(Regression().draw(Decisions(np.zeros((1, 5, 2))), 0), Points)
    assert Regression().draw(Decisions(np.array([[1.23456]])), 0) == Numbers(numbers=(1.235,), count=1)


def test_only_confident_boxes_are_drawn_and_labels_have_no_score() -> None:
    rows = np.array([[1.23456, 2, 8, 9, 0.9, 1], [0, 0, 5, 5, 0.1, 0]])
    drawing = Detection().draw(Decisions([rows]), 0)
    assert [(box.corners, box.label, box.score) for box in drawing.boxes] == [((1.235, 2, 8, 9), 1, 0.9)]
    expected = Detection().expected([np.array([[1, 2, 8, 9, 1, 0], [0, 0, 60, 60, 1, 1]])])
    label = Detection().draw(expected, 0)
    assert [(box.label, box.score) for box in label.boxes] == [(1, None)]
    assert Detection().agreement(Decisions([rows]), expected).tolist() == [1]


def changed(artifact: Any, source: Any, label: Any = None) -> Report:
    found = Findings(
        changed=1, samples=(SampleChange(sample=3, agreement=0.5, worse=True, artifact=artifact),)
    )
    result = Result(variant="v", format="f", device="d", status="ok", findings=(found,))
    references = (Reference(sample=3, label=label, source=source),)
    return Report(recipe="r", run=RUN, results=(result,), references=references)


def test_boxes_without_a_counterpart_are_marked() -> None:
    def boxes(*rows: list[float]) -> Boxes:
        array = np.array(rows, np.float64)
        return Boxes.of(array[:, :4], array[:, 4].astype(int).tolist(), [0.5] * len(rows))

    artifact = boxes([0, 0, 10, 10, 1], [0, 0, 10, 11, 1], [20, 20, 30, 30, 2])
    label = boxes([0, 0, 10, 10, 1], [20, 20, 30, 30, 3])
    (sample,) = page_of(changed(artifact, label, label))["samples"]
    assert sample["about"] == "agreement 50.00 %, worse"
    panes = {pane["title"]: [row[6] for row in pane["rows"]] for pane in sample["panes"]}
    # The second box is of an object that has been found already; the third one has another class.
    assert panes == {"label": [True, False], "original": [True, True], "this file": [True, False, False]}


def test_tokens_that_differ_are_marked() -> None:
    artifact, label = (Tokens.of(np.array(each)) for each in ([1, 2, 9, 3], [1, 2, 3, 4]))
    (sample,) = page_of(changed(artifact, label, label))["samples"]
    label_pane, original, mine = sample["panes"]
    assert [same for _, same in mine["rows"]] == [True, True, False, True]
    assert [same for _, same in label_pane["rows"]] == [True, True, True, False]
    assert all(same for _, same in original["rows"])


def test_the_pixels_that_changed_are_shown() -> None:
    before = np.zeros((16, 16), np.int64)
    after = before.copy()
    after[0, :8] = 2
    (sample,) = page_of(changed(Mask.of(after), Mask.of(before)))["samples"]
    assert [pane["title"] for pane in sample["panes"]] == ["original", "this file", "change"]
    assert sample["panes"][2]["share"] == "3.12 %"
    legend = sample["panes"][1]["classes"]
    assert [(label, share) for label, _, share in legend] == [(0, "96.88 %"), (2, "3.12 %")]
    assert legend[0][1] == "" and legend[1][1].startswith("#")


# The page


@pytest.mark.parametrize("name", CASES)
def test_every_task_has_a_page_whose_report_is_read_again(name: str) -> None:
    report = task_report(CASES[name](), WORSE)
    assert findings(report, 0).changed == 0
    assert 0 < len(findings(report).samples) <= MAX_SAMPLES
    again = Report.model_validate_json(report.model_dump_json(by_alias=True))
    assert again == report
    page = html.render(report)
    assert page == html.render(again)
    shown = page_of(report)
    assert shown["changed"] == findings(report).changed
    for sample in shown["samples"]:
        titles = [pane["title"] for pane in sample["panes"]]
        assert titles[-2:] == ["original", "this file"] or titles[-1] == "change"
    assert markdown.render(report).count("| int8.onnx") >= 1


def test_a_report_of_an_earlier_version_is_read_and_shows_its_flips() -> None:
    report = large_report(variants=1, formats=1, devices=1, pictures=2)
    old = json.loads(report.model_dump_json(by_alias=True))
    for field in ("references", "image_size"):
        del old[field]
    for row in old["results"]:
        del row["findings"], row["output_changes"]
    again = Report.model_validate(old)
    shown = page_of(again)
    assert (len(shown["samples"]), shown["charts"]) == (MAX_SAMPLES, [])
    assert [pane["rows"] for pane in shown["samples"][1]["panes"]] == [[[1, "", False]], [[2, "", False]]]
    lost = Flip(sample=0, label=0, answer=1, margin=1.0)
    assert again.results[0].flips[0] == lost


def test_a_device_has_its_own_references() -> None:
    report = large_report(variants=1, formats=1, devices=2, pictures=3, boxes=2)
    first = report.results[0].model_copy(update={"findings": (), "flips": ()})
    changed = report.model_copy(update={"results": (first, report.results[1])})
    assert changed.of_device("host").references == ()
    assert changed.of_device("host").thumbnails == {}
    other = changed.of_device("raspberry-pi-4")
    assert (len(other.references), len(other.thumbnails)) == (MAX_SAMPLES, 3)


def test_damaged_drawings_are_left_out() -> None:
    damaged = Mask(height=9, width=9, data="AAAA")
    report = changed(damaged, Mask.of(np.zeros((9, 9), np.int64)))
    (sample,) = page_of(report)["samples"]
    assert [pane["title"] for pane in sample["panes"]] == ["original"]
    boxes = Boxes.model_validate({"boxes": [{"corners": [0, 0, float("inf"), 1], "label": 1}], "count": 1})
    (sample,) = page_of(changed(boxes, boxes))["samples"]
    assert [pane["rows"] for pane in sample["panes"]] == [[], []]
    html.render(changed(boxes, boxes))


@pytest.mark.parametrize("word", ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>'])
def test_a_hostile_class_name_is_text(word: str) -> None:
    plain = task_report(detection(), WORSE)
    hostile = plain.model_copy(update={"labels": (word,) * 4})
    page = html.render(hostile)
    assert word not in page  # it is escaped in the data, and inserted as text
    assert page.count("<script") == html.render(plain).count("<script")
    assert "<script" not in markdown.render(hostile)
    charts = [ByClass.of(word, word, [0], [1], [1.0], [0.5])]
    result = hostile.results[1].model_copy(
        update={"findings": (findings(hostile).model_copy(update={"charts": charts, "head": word}),)}
    )
    assert word not in html.render(hostile.model_copy(update={"results": (result,)}))


# Size


@pytest.mark.slow
def test_a_report_does_not_grow_with_samples_and_classes() -> None:
    random = np.random.default_rng(0)
    n, classes = 10_000, 1_000
    labels = (random.random((n, classes)) < 0.01).astype(np.int64)
    scores = np.clip(labels + random.normal(0, 0.3, (n, classes)), 0, 1).astype(np.float32)
    worse = np.clip(scores + random.normal(0, 0.3, (n, classes)), 0, 1).astype(np.float32)
    task = Multilabel(probabilities=True)
    decide = lambda values: task.decide(Outputs([values]))  # noqa: E731
    found = Reader(task, decide(scores), labels).findings(decide(worse))
    assert found.changed == n
    assert (len(found.samples), len(found.charts[0].rows)) == (MAX_SAMPLES, MAX_CLASS_ROWS)
    assert found.charts[0].count == classes
    assert len(found.model_dump_json()) < 30_000


def test_charts_and_drawings_have_limits() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50_000)
    plot = Plot.of("line", "t", ("x", "y"), np.sort(values), values, values)
    assert (len(plot.x), plot.x[0]) == (MAX_CURVE, pytest.approx(values.min(), rel=1e-3))
    histogram = Histogram.of("t", "x", None, values)
    assert (len(histogram.after), sum(histogram.after)) == (MAX_BINS, 50_000)
    assert len(Tokens.of(np.arange(5000)).model_dump_json()) < 400
    boxes = Boxes.of(np.zeros((500, 4)), [1] * 500, [0.5] * 500)
    assert (len(boxes.boxes), boxes.count) == (20, 500)


def test_pixels_of_an_artifact_have_a_limit() -> None:
    random = np.random.default_rng(0)
    images = random.random((30, 64, 64, 3))
    found = Reader(Regression(), Decisions(images)).findings(Decisions(1 - images))
    assert found.changed == 30
    assert 2 <= len(found.samples) <= 5
    assert sum(len(one.artifact.data) for one in found.samples) <= MAX_CHARACTERS


def test_many_artifacts_share_the_samples_of_a_page() -> None:
    few = collect(large_report(variants=2, formats=1, devices=1, boxes=3))["rows"][0]["tasks"][0]
    many = collect(large_report(boxes=3))["rows"][0]["tasks"][0]
    assert (len(few["samples"]), len(many["samples"])) == (12, 4)


# Outputs, and the tables of text reports


def two_outputs() -> tuple[Outputs, Outputs]:
    random = np.random.default_rng(0)
    boxes = np.concatenate([random.uniform(0, 640, (9, 4, 5)), random.uniform(-3, 3, (9, 3, 5))], axis=1)
    dead = boxes.copy()
    dead[:, 4:] = 0.25
    state = random.normal(0, 1, (9, 2))
    return Outputs([boxes, state], ["boxes", "state"]), Outputs([dead, state + 0.001], ["boxes", "state"])


def test_every_part_that_died_is_listed() -> None:
    boxes, state = output_changes(*two_outputs())
    assert (boxes.name, boxes.status) == ("boxes", "broken")
    assert boxes.reason.startswith("part 4 of 7 on axis 1 is 0.25 everywhere: its range was ")
    assert [f"part {part} of 7" in boxes.reason for part in range(7)] == [False] * 4 + [True] * 3
    assert (state.status, state.reason, state.max_abs_error) == ("ok", "", pytest.approx(0.001))
    assert state.snr_db > 50
    source, _ = two_outputs()
    assert output_changes(source, Outputs(source.arrays[:1], ["boxes"])) == ()


def table_of(report: Report, width: int = 160) -> str:
    out = Console(file=io.StringIO(), width=width, force_terminal=width < 1000, color_system=None)
    show_report(report, out)
    return out.file.getvalue()


def test_outputs_are_a_table_in_every_report() -> None:
    result = Result(
        variant="int8",
        format="onnx",
        device="host",
        status="ok",
        output_changes=output_changes(*two_outputs()),
        findings=(Findings(head="boxes", changed=5, worse=2), Findings(head="state", changed=0, worse=0)),
    )
    report = Report(recipe="r", run=RUN, results=(result,))
    shown = collect(report)["rows"][0]["outputs"]
    assert shown["titles"] == ["SNR", "largest error", "agreement"]
    assert [row[0] for row in shown["rows"]] == ["boxes", "state"]
    text = markdown.render(report)
    assert "| artifact | output | SNR | largest error | agreement | parts that died |" in text
    assert "| int8.onnx | state | " in text
    assert "| int8.onnx, boxes | 5 | 2 |  |  |" in text
    terminal = table_of(report)
    titles = next(line for line in terminal.splitlines() if line.startswith("artifact"))
    assert titles.split() == "artifact output SNR largest error agreement parts that died".split()
    assert "changed decisions of 1000 samples: int8.onnx boxes 5 (2 farther from the label)\n" in terminal
    # A single output of which nothing died is in the table of results.
    single = result.model_copy(
        update={"output_changes": (OutputChange(name="a", snr_db=30.0),), "findings": ()}
    )
    plain = report.model_copy(update={"results": (single,)})
    assert "parts that died" not in markdown.render(plain) + table_of(plain)


def test_outputs_of_earlier_reports_are_shown() -> None:
    numbers = {"fidelity_snr_db": 31.0, "max_abs_error": 0.5, "spectral": 0.25}
    values = {name: {"value": value} for name, value in numbers.items()}
    result = Result.model_validate(
        {"variant": "v", "format": "f", "device": "d", "status": "ok", "outputs": {"a": values, "b": values}}
    )
    report = Report(recipe="r", run=RUN, results=(result,))
    assert "| artifact | output | SNR | largest error | agreement | spectral | parts that died |" in (
        markdown.render(report)
    )
    assert "| v.f | a | 31.0 dB | 0.5 |  | 0.25 |  |" in markdown.render(report)


def test_every_metric_of_a_recipe_has_a_column() -> None:
    infos = {
        "map50_95": ("mAP50-95", "fraction", "labels"),
        "map50": ("mAP50", "fraction", "labels"),
        "drift": ("drift", "number", "source"),
        "agreement": ("agreement", "fraction", "source"),
        "max_abs_error": ("largest error", "error", "source"),
    }
    metrics = tuple(
        MetricInfo(name=name, title=title, kind=kind, better="higher", against=against)
        for name, (title, kind, against) in infos.items()
    )
    measurements: dict[str, Any] = {
        name: {"value": 0.5, "kind": kind, "role": "quality"} for name, (_, kind, _) in infos.items()
    }
    measurements["map50_95_drop"] = {"value": 0.01, "kind": "points", "role": "drop"}
    measurements["size_bytes"] = {"value": 5_000_000, "kind": "bytes"}
    measurements["latency_p50_ms"] = {"value": 12.0, "kind": "time"}
    row = Result.model_validate(
        {
            "variant": "int8",
            "format": "tflite",
            "device": "host",
            "status": "ok",
            "measurements": measurements,
        }
    )
    report = Report(recipe="r", run=RUN, metrics=metrics, results=(row,))
    titles = [title for title, _ in columns(report, report.results)]
    assert titles == ["mAP50-95", "drop", "mAP50", "agreement", "drift", "size", "p50"]
    # On a narrow terminal, the metrics come first.
    narrow = table_of(report, width=60)
    header = next(line for line in narrow.splitlines() if line.startswith("variant"))
    assert header.split() == ["variant", "format", "status", "mAP50-95", "drop", "mAP50", "drift"]
    assert "hidden: agreement, size, p50" in narrow


def test_cases_are_of_their_own_tasks() -> None:
    kinds = {type(CASES[name]().task).__name__ for name in CASES}
    assert len(kinds) == 8
    assert all(isinstance(CASES[name](), Case) for name in CASES)
