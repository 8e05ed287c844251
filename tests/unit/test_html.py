"""The report page as text: self-contained, deterministic, and safe against injected names."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from edgeopt.reports import html
from edgeopt.reports.columns import higher_is_better
from edgeopt.reports.pagedata import collect
from edgeopt.results import (
    Artifact,
    Breakdown,
    ClassChange,
    Confusion,
    Flip,
    Gate,
    GraphNode,
    LayerBytes,
    MemoryLimits,
    Recommendation,
    Report,
    Result,
    SourceResult,
    Trial,
    Verdict,
)
from large_report import RUN, large_report

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "<!--<script>",
    "../../etc/passwd",
    "javascript:alert(3)",
    "{{ data }} {{ policy }}",
    "'&amp;\u2028\u2029\u202e",
    "\x00\x1b[31m\x07\ud800",
    "x" * 10_000,
)


class Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            at = len(self.found)
            self.texts[at] = self.texts.get(at, "") + data


def hostile(word: str) -> Report:
    result = Result(
        variant=word,
        format=word,
        device=word,
        status="failed",
        reason=word,
        notes=(word,),
        measurements={word: {"value": 0.5, "unit": word}, "top1": {"value": float("nan")}},
        layers=({word: word, "ms": float("inf")},),
        artifact=Artifact(
            path=word,
            digest=word,
            size_bytes=9,
            breakdown=Breakdown(
                parts={word: 9},
                layers=(LayerBytes(name=word, kind=word, size_bytes=9, macs=None),),
                graph=(GraphNode(name=word, kind=word, size_bytes=9),),
            ),
        ),
        trials=(
            Trial(name=word, size_bytes=9, drop=0.1, snr_db=10.0),
            Trial(name=word, raised=(word,), size_bytes=9, drop=0.1, snr_db=12.0, status="alone"),
        ),
        flips=(Flip(sample=0, label=0, answer=1, margin=0.5),),
        classes=(ClassChange(label=0, n=2, before=2, after=1),),
        confusions=(Confusion(label=0, answer=1, before=0, after=1),),
    )
    verdict = Verdict(
        gate=word, variant=word, format=word, device=word, status="fail", limit=0.1, reason=word, blocks=True
    )
    return Report(
        recipe=word,
        run=RUN.model_copy(update={"command": word, "notes": (word,), "document": word}),
        labels=(word, word),
        thumbnails={0: word},
        environment={word: {word: {word: {word: [word]}}}},
        source=SourceResult(format=word, path=word, measurements={word: {"value": float("inf")}}),
        results=(result,),
        gates=(verdict,),
        recommended=(
            Recommendation(device=word, status="none", variant=word, format=word, reason=word),
            Recommendation(device=word, status="ship", variant=word, format=word, reason=word),
        ),
        limits={word: MemoryLimits(flash=1, ram=0)},
    )


def data(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("word", HOSTILE, ids=lambda word: ascii(word[:12]))
def test_a_hostile_name_is_text(word: str) -> None:
    plain, page = html.render(hostile("name")), html.render(hostile(word))
    # Exactly the same elements as for a harmless name, with the same attributes.
    assert Elements(page).found == Elements(plain).found
    assert not set(map(chr, [*range(9), *range(14, 32)])) & set(page)
    page.encode()
    shown = data(page)
    if len(word) < 1000 and word.isprintable():
        assert shown["recipe"] == shown["rows"][0]["variant"] == shown["gates"][0]["gate"] == word
        assert shown["rows"][0]["notes"] == shown["notes"] == [word]
        assert shown["labels"][0].startswith(word[:40])
        assert shown["document"] == shown["files"][0]["layers"][0][0] == shown["searches"][0]["layers"][0][0]
    # Data that is not an image is not shown as one.
    assert shown["thumbnails"] == {}


def test_a_long_name_is_cut() -> None:
    page = html.render(hostile("x" * 10_000))
    assert data(page)["recipe"] == "x" * 200 + "… (10,000 characters)"
    assert len(page) < len(html.render(hostile("x"))) + 90_000


def test_nothing_is_fetched_and_nothing_else_may_run() -> None:
    page = html.render(large_report())
    elements = Elements(page)
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    style, _, library, script = (text for text in elements.texts.values() if text.strip())
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"{hashed(library)} {hashed(script)}"
    assert rules["style-src"] == hashed(style)
    assert "Copyright (c) 2014-2024 Chart.js Contributors" in library
    assert "sourceMappingURL" not in library
    # A namespace is a name, not an address.
    own = script.replace("http://www.w3.org/2000/svg", "") + style
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|https?:|url\(", own)


def test_a_large_report_stays_small() -> None:
    report = large_report()
    assert len(report.results) == 96
    page = html.render(report)
    assert len(page.encode()) < 2_000_000
    assert page == html.render(Report.model_validate_json(report.model_dump_json(by_alias=True)))


def test_the_first_words_are_the_verdict() -> None:
    def told(**changes: Any) -> tuple[str, str]:
        report = large_report(variants=1, formats=1, devices=1)
        verdict = report.gates[0].model_copy(update={"blocks": False} | changes)
        found = collect(report.model_copy(update={"gates": (verdict, report.gates[1])}))["verdict"]
        return found["headline"], found["summary"]

    assert told() == ("Passed", "2 of 2 gates passed.")
    assert told(status="fail", blocks=True) == ("Failed", "1 of 2 gates failed.")
    undecided = "1 of 2 gates undecided: too few samples."
    assert told(status="undecided", blocks=True) == ("Undecided", undecided)
    assert told(status="undecided") == ("Passed", undecided)
    whole = collect(large_report())["verdict"]
    assert whole["headline"] == "Incomplete"
    assert whole["detectable"] == "1,000 evaluation samples can detect drops of 1.30 pt or more."
    assert collect(Report(recipe="r", run=RUN))["verdict"]["headline"] == "No gates"


def test_gates_say_what_was_measured_and_how_sure() -> None:
    gates = collect(large_report())["gates"]
    assert [gate["status"] for gate in gates[:18]] == ["fail"] * 18
    fell = next(gate for gate in gates if gate["measured"] == "+5.10 pt")
    assert fell["limit"] == "+2.00 pt"
    assert fell["interval"] == "95 %: +4.20 pt to +6.00 pt"
    unsure = next(gate for gate in gates if gate["status"] == "undecided")
    assert unsure["reason"].endswith("4,200 samples would decide it")
    assert gates[-1]["limit"] == "524,288 B"


@pytest.mark.parametrize(
    ("gate", "measured", "told"),
    [
        (Gate(metric="latency_p50_ms", max_ratio=1.5), 1.25, ("1.25", "1.5")),
        (Gate(metric="latency_p50_ms", max_increase=0.5), 0.25, ("250 µs", "500 µs")),
        (Gate(metric="top1", min=0.9), 0.912, ("91.20 %", "90.00 %")),
    ],
)
def test_gates_have_the_unit_of_what_they_limit(gate: Gate, measured: float, told: tuple[str, str]) -> None:
    verdict = Verdict(
        gate=str(gate),
        variant="v",
        format="f",
        device="d",
        status="pass",
        measured=measured,
        limit=gate.limit[1],
    )
    shown = collect(Report(recipe="r", run=RUN, gates=(verdict,)))["gates"][0]
    assert (shown["measured"], shown["limit"]) == told


def test_which_way_a_metric_points_is_read_from_its_drops() -> None:
    report = large_report(variants=2, formats=1, devices=1)
    assert higher_is_better(report, report.primary_metric)
    old = report.model_dump(mode="json", by_alias=True)
    for row in old["results"]:
        row["measurements"] = {"mse": {"value": 0.3}, "mse_drop": {"value": 0.1}}
    old["source"] = {"format": "onnx", "path": "m.onnx", "measurements": {"mse": {"value": 0.2}}}
    changed = Report.model_validate(old)
    assert changed.primary_metric == "mse"
    assert not higher_is_better(changed, "mse")


def test_the_costliest_operators_are_kept() -> None:
    layers = collect(large_report(variants=1, formats=1, devices=1, layers=200))["rows"][0]["layers"]
    assert (len(layers["rows"]), layers["count"]) == (60, 200)
    times = [row[layers["titles"].index("ms")] for row in layers["rows"]]
    assert times == sorted(times, reverse=True)


def test_latencies_run_from_the_quickest_to_the_slowest() -> None:
    rows = collect(large_report())["rows"]
    spread = [point["value"] for point in rows[0]["spread"]]
    assert (len(spread), spread) == (5, sorted(spread))
    assert rows[0]["latency"]["whole"] == "210 µs (206 µs to 216 µs)"
    assert rows[11]["spread"] is None


def test_a_device_has_a_page_of_its_own() -> None:
    report = large_report()
    shown = data(html.render(report.of_device("phone")))
    assert [device["name"] for device in shown["devices"]] == ["phone"]
    assert {row["device"] for row in shown["rows"]} == {"phone"}
    assert {gate["device"] for gate in shown["gates"]} == {"phone"}


def test_classes_and_confusions_are_those_of_source_and_artifact() -> None:
    row = collect(large_report(variants=1, formats=1, devices=1))["rows"][0]
    assert row["classes"]["rows"][0] == [0, 160, 150, 140]
    assert (len(row["confusions"]["rows"]), row["confusions"]["count"]) == (18, 18)
    many = tuple(ClassChange(label=number, n=5, before=5, after=5) for number in range(200))
    report = large_report(variants=1, formats=1, devices=1)
    wide = report.model_copy(
        update={"results": (report.results[0].model_copy(update={"classes": many}),)},
    )
    shown = collect(wide)["rows"][0]["classes"]
    assert (len(shown["rows"]), shown["count"]) == (40, 200)


def test_bytes_are_told_once_per_file() -> None:
    shown = collect(large_report(variants=2, formats=1, devices=4))
    assert [(file["variant"], file["format"]) for file in shown["files"]] == [
        ("float", "tflite"),
        ("float16", "tflite"),
    ]
    parts = dict(shown["files"][0]["parts"])
    assert sum(parts.values()) == shown["rows"][0]["size"]["value"]
    assert (len(shown["files"][0]["layers"]), shown["files"][0]["count"]) == (24, 80)


def test_sensitive_layers_come_first() -> None:
    (search,) = collect(large_report(variants=4, formats=1, devices=1))["searches"]
    layers = search["layers"]
    assert [layer for layer, _, _ in layers] == [f"model/block_{number}" for number in range(1, 13)]
    assert layers[0][1] == pytest.approx(1 - 10 ** (-1.5 / 10))
    assert layers[0][2] == 1_000
    # Single layers were measured, not tried.
    assert len(search["trials"]) == 12


def test_the_command_that_looks_into_an_artifact_is_told() -> None:
    row = collect(large_report(variants=1, formats=1, devices=1))["rows"][0]
    assert row["diagnose"] == "edgeopt diagnose recipes/words.yaml --variant float --format tflite"
