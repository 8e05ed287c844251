"""What a pull request shows of a run: the comment, its limits, hostile names, and annotations."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgeopt.commands.judge import explain, judge, write_files
from edgeopt.errors import CannotRunError, RemoteError
from edgeopt.evaluation.baseline import baseline_of, differences
from edgeopt.evaluation.judgement import Judgement
from edgeopt.evaluation.regression import Limits, check
from edgeopt.publish.pull_requests import Forbidden, pull_request, put_comment
from edgeopt.reports.ci import code_quality, comment
from edgeopt.reports.ci.annotations import annotations
from edgeopt.results import Report, Verdict
from edgeopt.results.recommendation import Recommendation
from test_baseline import right, run
from toy_ci import ROOT, Host, serving

RECIPE = """version: 1
optimize:
  int8: {quantize: int8}
formats: [tflite]
gates:
  - {metric: top1, max_drop: 0.01, confidence: 0.95}
  - {metric: top1, max_drop: 0.01}
  - {metric: size_bytes, max: 64 KiB, format: tflite}
"""


def judged(before: Report, after: Report) -> Judgement:
    return judge(after, baseline_of(before), Limits(), run=Path(), with_gates=True)[0]


def joined(*reports: Report) -> Report:
    rows = tuple(row for report in reports for row in report.results)
    return reports[0].model_copy(update={"results": rows})


def verdict(gate: str, **changes: Any) -> Verdict:
    usual: dict[str, Any] = {"variant": "int8", "format": "tflite", "device": "host"}
    usual |= {"status": "fail", "limit": 0.01, "reason": "too much", "blocks": True}
    return Verdict(gate=gate, **(usual | changes))


def test_rows_show_before_and_after_and_how_sure_it_is() -> None:
    arena = {"value": 4096, "unit": "bytes", "kind": "memory"}
    ratio = {"value": 0.5, "kind": "ratio"}
    good = run(right(), variant="same")
    before, after = run(right()), run(right(wrong=60), size=900)
    for report, count in ((before, 1), (after, 2)):
        values = report.results[0].measurements
        values |= (
            run(right(), measurements={"arena_bytes": arena, "latency_ratio": ratio}).results[0].measurements
        )
        values["arena_bytes"] = values["arena_bytes"].model_copy(update={"value": 4096 * count})
        values["latency_ratio"] = values["latency_ratio"].model_copy(update={"value": 0.5 * count})
    body = comment.render(judged(joined(before, good), joined(after, good, run(right(), variant="new"))))
    lines = body.splitlines()
    assert lines[0] == "### **✗** edgeopt: kws: **worse than the baseline**"
    assert lines[2].startswith(
        "- **int8.tflite on host**, top1 max_drop 0.01 confidence=0.95: fail: worse by 5.00 pt"
    )
    changed = next(line for line in lines if line.startswith("| **✗** | int8.tflite"))
    cells = [cell.strip() for cell in changed.strip("|").split("|")]
    assert cells[2:6] == [
        "90.00 % → 85.00 % (-5.00 pt)",
        "1,000 B → 900 B (-10.0%)",
        "0.50 × → 1.00 ×",
        "4.0 KiB → 8.0 KiB (+100.0%)",
    ]
    assert re.fullmatch(r"95% sure: change between -7\.\d\d pt and -3\.\d\d pt", cells[6])
    ship = Recommendation(device="host", status="ship", variant="same", format="tflite")
    passing = joined(good).model_copy(update={"recommended": (ship,)})
    assert "\nShip **same.tflite** on host.\n" in comment.render(judged(good, passing))
    shown, _, collapsed = body.partition("<details>")
    assert "same.tflite" in collapsed and "same.tflite" not in shown
    assert "| ✓ | new.tflite on host | 90.00 % | 1,000 B | – | – | new |" in shown


def test_few_samples_are_undecided_and_say_how_many_would_do() -> None:
    other = run(right(40, 4)).results[0].artifact
    assert other is not None
    flicker = run(np.roll(right(40, 4), 1), artifact=other.model_copy(update={"digest": "cd" * 32}))
    found = judged(run(right(40, 4)), flicker)
    assert found.word == "undecided"
    body = comment.render(found)
    assert body.startswith(
        "### **?** edgeopt: kws: **undecided whether worse than the baseline: too few samples**"
    )
    assert re.search(r"about [\d,]+ samples would decide \|", body)


def test_a_comment_over_the_limit_keeps_the_verdict_and_what_it_fits() -> None:
    one = judged(run(right()), run(right(wrong=60)))
    many = replace(one, changes=(one.changes or ()) * 900)
    body = comment.render(many, links={"report": "https://ci.example/1"})
    assert 10_000 < len(body) <= comment.LIMIT
    assert body.startswith("### **✗** edgeopt: kws: **worse than the baseline**")
    assert re.search(r"- and \d{3} more, in the report", body)
    assert body.rstrip().endswith("[report](https://ci.example/1)")
    assert body.count("<details>") == body.count("</details>") == 1
    long = run(right(), status="failed", reason="x" * 200_000)
    assert len(comment.render(judged(run(right()), long))) < 3000
    failure = comment.render_failure("recipe.yaml", "`````\n" + "x" * 200_000)
    assert len(failure) <= comment.LIMIT and failure.rstrip().endswith("``````")


def test_hostile_names_stay_text() -> None:
    name = "a|b<img src=x onerror=alert(1)>\n# `x` --> **y**"
    bad = run(right(wrong=60), variant=name, device="--><script>")
    body = comment.render(judged(run(right(), variant=name, device="--><script>"), bad), title="t <!-- x")
    assert "<img" not in body and "<script" not in body and "<!--" not in body
    assert not any(line.startswith("# ") for line in body.splitlines())
    (row,) = [line for line in body.splitlines() if line.startswith("| **✗** | a")][:1]
    assert row.replace("\\|", "").count("|") == 6


def test_annotations_are_at_the_gate_or_the_variant() -> None:
    report = run(right(wrong=60)).model_copy(
        update={
            "gates": (
                verdict("top1 max_drop 0.01"),
                verdict("top1 max_drop 0.01 confidence=0.95", status="undecided", blocks=False),
                verdict("size_bytes max 65536 formats=tflite"),
                verdict("size_bytes max 65536", variant="-", format="-", device="-"),
                verdict("agreement min 0.9"),
                verdict("top1 max_drop 0.01", status="pass", blocks=False),
            )
        }
    )
    found = annotations(judged(run(right()), report), RECIPE)
    assert [(each.level, each.line) for each in found] == [
        ("error", 7),
        ("error", 8),
        ("error", 8),
        ("error", 5),
        ("error", 3),
        ("warning", 6),
    ]
    assert found[2].title == "size_bytes max 65536"
    for text in ("", "- 1", "gates: 3", "gates: [{metric: x}]", "a: [", "optimize: 1\n"):
        assert {each.line for each in annotations(judged(run(right()), report), text)} <= {0, 1}
    quality = json.loads(code_quality.render(found, "recipe.yaml"))
    assert [issue["location"]["lines"]["begin"] for issue in quality] == [7, 8, 8, 5, 3, 6]
    assert len({issue["fingerprint"] for issue in quality}) == 6
    # A fingerprint is of the failure, not of its figures or its place.
    moved = annotations(judged(run(right()), report), "\n\n" + RECIPE)
    assert [i["fingerprint"] for i in json.loads(code_quality.render(moved, "recipe.yaml"))] == [
        issue["fingerprint"] for issue in quality
    ]


def test_a_failed_artifact_is_part_of_a_baseline() -> None:
    broken = run(right(), variant="broken", status="failed", reason="no kernel\nmore", samples={})
    before = joined(run(right()), broken)
    baseline = baseline_of(before)
    assert [entry.failed for entry in baseline.entries] == [None, "failed: no kernel"]
    assert "failed" not in baseline.entries[0].model_dump(exclude_none=True)
    # As before: nothing is worse, and its gates do not block what the baseline accepts.
    gates = (verdict("top1 max_drop 0.01", variant="broken", reason="not measured"),)
    same = judged(before, before.model_copy(update={"gates": gates}))
    assert (same.word, same.exit_code, same.gates) == ("pass", 0, ())
    assert "2 unchanged artifacts" in comment.render(same) and "failed: no kernel" in comment.render(same)
    # It works now, another one broke, and one that is only in the new run failed.
    healed = judged(before, joined(run(right()), run(right(), variant="broken")))
    assert (healed.word, healed.exit_code) == ("pass", 0)
    assert [v.reason for v in healed.compared if v.variant == "broken"] == ["before: failed: no kernel"]
    worse = judged(before, joined(run(right(), status="failed", reason="crash"), broken))
    assert (worse.word, worse.exit_code) == ("error", 3)
    assert "- **int8.tflite on host** failed: crash" in comment.render(worse)
    added = judged(run(right()), before)
    assert added.exit_code == 3 and "new, failed: no kernel" in comment.render(added)
    fixed = baseline_of(joined(run(right()), run(right(), variant="broken")))
    assert differences(baseline, fixed)[0] == "  broken.tflite on host: failed: no kernel -> ok"
    assert [v.status for v in check(before, baseline, Limits())] == ["pass"] * 3


def test_the_files_and_outputs_of_a_run_that_did_not_finish(tmp_path: Path) -> None:
    error = CannotRunError("no space", fix="free some")
    explanation = explain(error, "missing.yaml", "", {})
    outputs = write_files(explanation, error, tmp_path / "new", "a b/../c:*")
    assert outputs == {
        "verdict": "error",
        "comment": str(tmp_path / "new" / "comment.md"),
        "artifact": "edgeopt-a-b-..-c",
    }
    assert (
        "**could not run**\n\n```\nno space\n  free some\n```"
        in (tmp_path / "new" / "comment.md").read_text()
    )


@pytest.fixture
def host() -> Iterator[Host]:
    with serving(Host()) as served:
        yield served


def github(host: Host, tmp_path: Path, event: object) -> dict[str, str]:
    (tmp_path / "event.json").write_text(json.dumps(event))
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_EVENT_PATH": str(tmp_path / "event.json"),
        "GITHUB_REPOSITORY": "team/models",
        "GITHUB_API_URL": host.url,
        "GITHUB_TOKEN": "secret",
    }


def test_comments_are_found_by_what_they_are_about(host: Host, tmp_path: Path) -> None:
    where = pull_request(github(host, tmp_path, {"number": 7, "pull_request": {}}))
    assert where is None  # no pull request at all
    where = pull_request(github(host, tmp_path, {"number": 7, "pull_request": {"number": 7}}))
    assert where is not None
    host.others = 250
    assert put_comment(where, "one", "a.yaml") == f"{host.url}/comment-1"
    assert put_comment(where, "two", "b.yaml") == f"{host.url}/comment-2"
    host.failures = 2
    assert put_comment(where, "three", "a.yaml") == f"{host.url}/comment-1"
    assert [text.splitlines()[1] for text in host.comments.values()] == ["three", "two"]
    host.comments = {}
    put_comment(where, "x" * comment.LIMIT, "a.yaml")  # and its mark: what the host accepts
    with pytest.raises(RemoteError, match="GitHub returned 422"):
        put_comment(where, "x" * 70_000, "a.yaml")
    host.read_only = True
    with pytest.raises(Forbidden, match="GitHub refused the comment: 403"):
        put_comment(where, "one", "a.yaml")


@pytest.mark.parametrize("event", [{"ref": "refs/heads/main"}, {"pull_request": 3}, {"number": 3}])
def test_other_jobs_have_no_pull_request(host: Host, tmp_path: Path, event: object) -> None:
    assert pull_request(github(host, tmp_path, event)) is None
    assert pull_request({}) is None
    assert pull_request({"GITLAB_CI": "true", "CI_API_V4_URL": host.url, "CI_PROJECT_ID": "3"}) is None


def test_the_reusable_workflow_and_the_hooks_fit_the_action(tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "model.yml").read_text())
    (job,) = workflow["jobs"].values()
    baseline, used = job["steps"][-2:]
    assert used["uses"] in (ROOT / "README.md").read_text()  # the same name of a copy in all examples
    assert set(used["with"]) <= set(action["inputs"])
    asked = set(re.findall(r"inputs\.([\w-]+)", json.dumps(job)))
    assert asked == set(workflow[True]["workflow_call"]["inputs"])  # YAML reads "on" as true
    variables = {"FOLDER": "base lines", "RECIPE": "a b/key words.yaml", "GITHUB_OUTPUT": "out"}
    subprocess.run(["bash", "-ec", baseline["run"]], env=variables, cwd=tmp_path, check=True)
    assert (tmp_path / "out").read_text() == "file=base lines/key words.json\n"
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    files = [
        "recipe.yaml",
        "a/kws.recipe.yml",
        "recipes/kws.yaml",
        "compose.yaml",
        "a/my_recipe.yaml",
        "m.tflite",
    ]
    assert [[name for name in files if re.search(hook["files"], name)] for hook in hooks.values()] == [
        files[:3],
        ["m.tflite"],
    ]
