"""Which artifact a report recommends on a device, and how the reports say so."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeopt.cli.screen.tables import show_report
from edgeopt.evaluation.judgement import Judgement
from edgeopt.recipe.starter.goals import GOALS
from edgeopt.reports import render, write_report
from edgeopt.reports.cards import address, cards, publishing
from edgeopt.reports.ci import comment
from edgeopt.results import (
    GUESSED,
    Artifact,
    MemoryLimits,
    MetricInfo,
    Preference,
    Report,
    Result,
    SourceResult,
    Verdict,
    recommend,
)
from large_report import RUN, large_report

QUALITY = "top1 max_drop 0.01"


def result(variant: str, size: float = 1000, latency: float | None = 1.0, **changes: Any) -> Result:
    values: dict[str, Any] = {
        "size_bytes": {"value": size},
        "top1": {"value": 0.9, "kind": "fraction", "role": "quality"},
        "top1_drop": {"value": 0.0025, "ci95": (-0.005, 0.01), "kind": "points", "role": "drop"},
    }
    if latency is not None:
        values["latency_p50_ms"] = {"value": latency, "kind": "time", "role": "cost"}
    usual: dict[str, Any] = {
        "variant": variant,
        "format": "tflite",
        "device": "host",
        "status": "ok",
        "artifact": Artifact(path=f"models/{variant}.tflite", digest="ab" * 32, size_bytes=int(size)),
        "measurements": values | changes.pop("values", {}),
    }
    return Result(**(usual | changes))


def verdict(row: Result, status: str = "pass", gate: str = QUALITY, **changes: Any) -> Verdict:
    usual: dict[str, Any] = {
        "gate": gate,
        "variant": row.variant,
        "format": row.format,
        "device": row.device,
        "status": status,
        "measured": 0.03,
        "limit": 0.01,
        "reason": "" if status == "pass" else "too much",
        "blocks": status != "pass",
    }
    return Verdict(**(usual | changes))


def report(*rows: Result, gates: tuple[Verdict, ...], prefer: Preference = "smallest", **more: Any) -> Report:
    source = SourceResult(format="keras", path="m.keras", measurements={"top1": {"value": 0.9025}})
    found = recommend(rows, gates, prefer)
    return Report(
        recipe="My words", run=RUN, source=source, results=rows, gates=gates, recommended=found, **more
    )


def test_the_smallest_that_passes_is_recommended_or_the_fastest() -> None:
    rows = [result("float", 4000, 1.0), result("int8", 1000, 0.5), result("int4", 500, 0.7)]
    gates = [verdict(rows[0]), verdict(rows[1]), verdict(rows[2], "fail")]
    for prefer, variant in (("smallest", "int8"), ("fastest", "int8")):
        (found,) = recommend(rows, gates, prefer)  # type: ignore[arg-type]
        assert (found.status, found.variant) == ("ship", variant)
    faster = [result("float", 4000, 0.4), *rows[1:]]
    assert [each.variant for each in recommend(faster, gates, "fastest")] == ["float"]
    # An undecided gate that the recipe lets pass does not stop an artifact.
    lenient = [*gates[:2], verdict(rows[2], "undecided", blocks=False)]
    assert [each.variant for each in recommend(rows, lenient)] == ["int4"]


def test_what_the_other_preference_ships_is_named_if_it_is_much_better() -> None:
    rows = [result("float", 4000, 1.0), result("dynamic", 900, 2.0), result("int8", 1000, 0.5)]
    gates = tuple(map(verdict, rows))
    card = cards(report(*rows, gates=gates))[0]
    assert (card.lines[-1].title, card.lines[-1].text) == ("fastest", "int8.tflite: 1,000 B, 500 µs")
    assert card.summary.endswith("900 B (0.23 × float), 2.000 ms; fastest int8.tflite: 1,000 B, 500 µs")
    # 900 bytes are not much less than 1,000.
    assert [each.alternative for each in recommend(rows, gates, "fastest")] == [None]
    less = [*rows, result("int4", 700, 3.0)]
    assert recommend(less, [*gates, verdict(less[3])], "fastest")[0].alternative == ("int4", "tflite")
    # What fails a gate is no alternative.
    assert recommend(less, [*gates, verdict(less[3], "fail")], "fastest")[0].alternative is None


def test_without_times_the_fastest_is_the_smallest_and_says_so() -> None:
    rows = [result("float", 4000, None), result("int8", 1000, None)]
    (found,) = recommend(rows, [verdict(row) for row in rows], "fastest")
    assert (found.variant, found.reason) == ("int8", "nothing was timed on this device: the smallest")
    counted = [result("float", 4000, None, values={"npu_cycles": {"value": 9}}), rows[1]]
    (found,) = recommend(counted, [], "fastest")
    assert found.variant == "float"


def test_what_no_gate_limits_the_quality_of_is_not_recommended() -> None:
    small, judged = result("int4", 100), result("int8", 1000)
    (found,) = recommend([small], [verdict(small, gate="size_bytes max 5000")])
    assert (found.status, found.variant, found.reason) == ("unjudged", "int4", "no gate limits its quality")
    # Whatever it costs, an artifact whose quality is known to be enough comes first.
    (found,) = recommend([small, judged], [verdict(judged)])
    assert (found.status, found.variant) == ("ship", "int8")
    assert found.reason == "int4.tflite is smaller, but no gate limits its quality"
    assert cards(report(small, judged, gates=(verdict(judged),)))[0].summary.endswith(f"({found.reason})")
    card = cards(report(small, gates=()))[0]
    assert card.pull == ""
    assert card.summary.startswith("no recommendation on host, no gate limits the quality; int4.tflite: 90.0")


def test_if_nothing_passes_the_nearest_is_named() -> None:
    rows = [result("int8"), result("int4", 500)]
    gates = (
        verdict(rows[0], "fail", measured=0.02),
        verdict(rows[1], "fail", measured=0.2),
    )
    (found,) = recommend(rows, gates)
    assert (found.status, found.variant, found.reason) == ("none", "int8", f"{QUALITY}: too much")
    # One failed gate is nearer than two.
    two = (
        *gates[1:],
        verdict(rows[0], "fail", measured=0.02),
        verdict(rows[0], "fail", gate="size_bytes max 9"),
    )
    assert recommend(rows, two)[0].variant == "int4"
    card = cards(report(*rows, gates=gates))[0]
    assert card.summary == f"ship nothing on host: int8.tflite is nearest, but fails {QUALITY}: too much"
    assert card.pull == ""


def test_if_nothing_was_measured_the_first_reason_is_given() -> None:
    lost = result("int8", status="failed", reason="quantize: no kernel\ntrace", artifact=None, values={})
    (found,) = recommend([lost], [verdict(lost, "fail")])
    assert (found.status, found.variant) == ("none", "")
    assert found.reason == "no artifact could be built and measured: int8.tflite: quantize: no kernel"
    shown = report(lost, gates=(verdict(lost, "fail"),))
    assert cards(shown)[0].summary == f"ship nothing on host: {found.reason}"
    assert "**Nothing to ship on host**\n" in render(shown, "md")


def test_memories_are_shares_of_the_limits() -> None:
    board = result(
        "int8", 4096, None, device="board", values={"arena_bytes": {"value": 65536, "kind": "memory"}}
    )
    limits = {"board": MemoryLimits(flash=8192, ram=131072)}
    card = cards(report(board, gates=(verdict(board),), limits=limits))[0]
    assert [(line.title, line.text, line.share) for line in card.lines[1:]] == [
        ("size", "4,096 B", None),
        ("RAM", "64.0 KiB arena, 50 % of 128.0 KiB", 0.5),
        ("flash", "4,096 B size, 50 % of 8.0 KiB", 0.5),
    ]

    assert card.summary.endswith("pt), 4,096 B, 64.0 KiB arena, 50 % of 128.0 KiB")


def test_the_change_has_the_sign_of_the_value() -> None:
    row = result("int8")
    line = cards(report(row, gates=(verdict(row),)))[0].lines[0]
    told = "90.00 % (−0.25 pt against the original model, 95 % interval −1.00 pt to +0.50 pt)"
    assert (line.title, line.text) == ("top1", told)


def test_an_error_that_grew_has_a_plus() -> None:
    values = {
        "mse": {"value": 0.3, "kind": "error", "role": "quality"},
        "mse_drop": {"value": 0.1, "ci95": (0.05, 0.125), "kind": "error", "role": "drop"},
    }
    row = result("int8").model_copy(update={"measurements": {}})
    row = Result.model_validate(row.model_dump() | {"measurements": values})
    info = MetricInfo(name="mse", kind="error", title="MSE", better="lower", against="labels")
    shown = report(row, gates=(verdict(row, gate="mse max_drop 0.2"),), metrics=(info,))
    line = cards(shown)[0].lines[0]
    assert line.title == "MSE"
    assert line.text == "0.3 (+0.1 against the original model, 95 % interval +0.05 to +0.125)"


def test_every_report_has_the_recommendation(tmp_path: Path) -> None:
    rows = [result("float", 4000, 1.0), result("int8", 1000, 0.5)]
    shown = report(*rows, gates=tuple(map(verdict, rows)))
    write_report(shown, tmp_path)
    again = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert again.recommended == shown.recommended
    pull = "edgeopt artifacts pull my-words --device host --variant int8 --format tflite --out my-words"
    for name, link in (("report.md", "./models/int8.tflite"), ("devices/host.md", "./../models/int8.tflite")):
        text = (tmp_path / name).read_text("utf-8")
        assert f"**Ship this on host**: [`models/int8.tflite`]({link})\n" in text
        assert pull in text
    for name, link in (("report.html", "./models/"), ("devices/host.html", "./../models/")):
        assert f'"link":"{link}int8.tflite"' in (tmp_path / name).read_text("utf-8")
    out = Console(file=io.StringIO(), width=200)
    show_report(shown, out)
    last = out.file.getvalue().strip().splitlines()[-1]  # type: ignore[attr-defined]
    assert last.startswith("ship models/int8.tflite on host: 90.00 % (−0.25 pt")
    assert last.endswith("1,000 B (0.25 × float), 500 µs")


def test_a_device_that_stands_in_for_another_says_so(tmp_path: Path) -> None:
    rows = [result("float", 4000, 1.0), result("int8", 1000, 0.5)]
    gates = tuple(verdict(row) for row in rows)
    shown = report(*rows, gates=gates).model_copy(update={"target": GOALS["phone"].target})
    (card,) = cards(shown)
    assert card.headline == "Ship this on a phone (tested on host)"
    assert card.summary == (
        "ship models/int8.tflite on a phone: 90.00 % (−0.25 pt against the original model, 95 % interval "
        "−1.00 pt to +0.50 pt), 1,000 B (0.25 × float), 500 µs on host; tested on host, not on a phone, "
        "where latency and memory are others; with a phone attached by adb, add --device android-adb"
    )
    assert "--device android-adb --variant int8" in card.pull
    # Of a phone that is measured as well, nothing is in doubt.
    phone = result("int8", device="android-adb")
    shown = report(*rows, phone, gates=(*gates, verdict(phone))).model_copy(update={"target": shown.target})
    assert [each.headline for each in cards(shown)][1] == "Ship this on android-adb"
    write_report(shown, tmp_path)
    assert "**Ship this on a phone (tested on host)**" in (tmp_path / "report.md").read_text("utf-8")
    assert "Ship this on a phone (tested on host)" in (tmp_path / "report.html").read_text("utf-8")


def test_what_to_do_with_a_run_is_said_if_it_can_be_shipped(tmp_path: Path) -> None:
    row = result("int8")
    shown = report(row, gates=(verdict(row),)).model_copy(update={"folder": tmp_path / "my run"})
    assert publishing(shown) == (
        f"publish: edgeopt artifacts push '{tmp_path}/my run' --channel stable; fetch: edgeopt artifacts "
        "pull my-words --device host --variant int8 --format tflite --out my-words"
    )
    assert publishing(shown.model_copy(update={"folder": None})) == ""
    board = result("int8", device="cortex-m")
    both = report(row, board, gates=(verdict(row), verdict(board))).model_copy(update={"folder": tmp_path})
    assert "fetch: edgeopt artifacts pull my-words --device cortex-m " in publishing(both)
    failed = report(row, gates=(verdict(row, "fail"),)).model_copy(update={"folder": tmp_path})
    assert publishing(failed) == ""


def test_a_guessed_preprocessing_stands_beside_what_to_ship(tmp_path: Path) -> None:
    row = result("float", 4000, 1.0)
    shown = report(row, gates=(verdict(row),))
    note = f"{GUESSED} by trying the usual ones"
    source = SourceResult(path="m.pth", format="torch", measurements={"top1": row.measurements["top1"]})
    shown = shown.model_copy(
        update={"run": shown.run.model_copy(update={"notes": (note, "other")}), "source": source}
    )
    doubt = f"{note}; the original model gets top1 90.00 % with it: is that what you measured?"
    write_report(shown, tmp_path)
    first, _, _ = (tmp_path / "report.md").read_text("utf-8").partition("Ship this")
    assert f"**{doubt}**" in first
    assert f'"doubts":["{doubt}"]' in (tmp_path / "report.html").read_text("utf-8")
    assert f"> {doubt}\n" in comment.render(Judgement(shown, shown.gates))
    assert f"<em>{doubt}</em>" in shown._repr_html_()
    out = Console(file=io.StringIO(), width=200)
    show_report(shown, out)
    lines = out.file.getvalue().strip().splitlines()  # type: ignore[attr-defined]
    assert lines[-1] == doubt
    assert "note: other" in lines and not any(line.startswith(f"note: {GUESSED}") for line in lines)


@pytest.mark.parametrize(
    ("path", "link"),
    [
        ("models/int8.tflite", "./../models/int8.tflite"),
        ("javascript:alert(1)", "./../javascript%3Aalert%281%29"),
        ("//evil.example/x", "./../evil.example/x"),
        ("../../etc/passwd", "./../etc/passwd"),
        ("models/a?b#c", "./../models/a%3Fb%23c"),
        ("", ""),
    ],
)
def test_links_stay_in_the_folder_of_the_run(path: str, link: str) -> None:
    assert address(path, "../") == link


def test_a_device_has_its_own_recommendation() -> None:
    full = large_report(variants=4, formats=2, devices=2)
    full = full.model_copy(
        update={
            "recommended": recommend(full.results, full.gates),
            "limits": {"host": MemoryLimits(ram=1), "raspberry-pi-4": MemoryLimits(ram=2)},
        }
    )
    one = full.of_device("raspberry-pi-4")
    assert [each.device for each in one.recommended] == ["raspberry-pi-4"]
    assert one.limits == {"raspberry-pi-4": MemoryLimits(ram=2)}
