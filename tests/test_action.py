"""The GitHub action and the GitLab component, played in a clean shell against a server of the test's own."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeopt.config.yaml_source import read_yaml
from toy_ci import ROOT, Host, play, play_gitlab, scripts, serving

RECIPE = """version: 1
name: tones
model: {path: tones.onnx}
data:
  calibration: {uses: npz, with: {path: tones.npz, limit: 50}}
  evaluation: {uses: npz, with: {path: tones.npz}}
  allow_leak: true
metric: top1
optimize:
  int8: {quantize: int8}
formats: [onnx]
latency: {min_runs: 5, min_seconds: 0}
gates:
  - {metric: size_bytes, max: 64 KiB}
  - {metric: top1, max_drop: 0.05, variant: int8}
"""


def write_model(path: Path, noise: float = 0.0) -> None:
    """A classifier of 16 numbers that is always right; ``noise`` makes it worse."""
    import onnx
    from onnx import helper, numpy_helper

    random = np.random.default_rng(0)
    weights = random.standard_normal((16, 4)).astype(np.float32)
    x = random.standard_normal((400, 16)).astype(np.float32)
    np.savez(path.with_suffix(".npz"), x=x, y=(x @ weights).argmax(1))
    weights = weights + np.float32(noise) * random.standard_normal((16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["scores"], name="dense")],
        "tones",
        [helper.make_tensor_value_info("x", 1, [1, 16])],
        [helper.make_tensor_value_info("scores", 1, [1, 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with serving(Host()) as served:
        yield served


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A repository with a recipe; its names have blanks."""
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "the recipe.yaml").write_text(RECIPE)
    write_model(folder / "tones.onnx")
    return folder


def fake_pip(workspace: Path, end: str) -> None:
    """A python that writes its arguments instead of installing something."""
    python = workspace.parent / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" > asked\n{end}\n')
    python.chmod(0o755)


@pytest.mark.slow
def test_a_passing_and_a_failing_pull_request_explain_themselves(workspace: Path, host: Host) -> None:
    host.others = 150  # the job's own comment is on the second page
    usual = {"recipe": "the recipe.yaml", "out": "the run"}
    usual["arguments"] = "--set 'optimize.int8={quantize: int8}' --set latency.min_runs=6"

    # The default branch: no pull request, no baseline yet.
    main = play(workspace, **usual)
    assert main.codes == {"install": 0, "ci": 0}, main.log
    assert main.outputs["verdict"] == "pass" and "all 3 gates pass" in main.summary
    assert json.loads((workspace / "the run" / "report.json").read_text())["run"]["document"].count(
        "min_runs: 6"
    )
    write = [sys.executable, "-m", "edgeopt", "baseline", "write", "the run", "--out", "base line.json"]
    subprocess.run(write, cwd=workspace, check=True, capture_output=True)
    usual["baseline"] = "base line.json"

    # A pull request that changes nothing.
    host.failures = 1  # the first request is answered by a gateway
    passing = play(workspace, host, variables={"EDGEOPT_READ_TIMEOUT": "20"}, **usual)
    assert passing.codes == {"install": 0, "ci": 0}, passing.log
    assert passing.annotations == []
    assert passing.outputs == {
        "verdict": "pass",
        "comment": "the run/comment.md",
        "report": "the run/report.json",
        "junit": "the run/junit.xml",
    }
    (comment,) = host.comments.values()
    assert comment.splitlines()[1] == "### ✓ edgeopt: tones: no worse than the baseline, all 3 gates pass"
    before_details, _, collapsed = comment.partition("<details>")
    assert "2 unchanged artifacts" in collapsed and "| ✓ |" not in before_details
    assert "the same answers" in collapsed or "the predictions are identical (400 samples)" in collapsed
    assert "(https://code.example/team/models/actions/runs/42)" in comment
    assert passing.summary.count("### ✓ edgeopt") == 1 and passing.summary.count("# tones\n") == 1
    ((name, folder),) = passing.artifacts.items()
    assert name == "edgeopt-the-recipe.yaml"
    assert (folder / "report.html").exists() and (folder / "models" / "int8.onnx").exists()
    assert (folder / "comment.md").read_text() in comment

    # One that breaks the model, and a limit of the recipe.
    write_model(workspace / "tones.onnx", noise=0.5)
    stricter = RECIPE.replace("max: 64 KiB", "max: 1 KiB")
    (workspace / "the recipe.yaml").write_text(stricter)
    failing = play(workspace, host, **usual)
    assert failing.codes == {"install": 0, "ci": 1}, failing.log
    assert failing.outputs["verdict"] == "fail"
    assert len(host.comments) == 1  # the same comment, replaced
    (comment,) = host.comments.values()
    headline = "**worse than the baseline, 1 of 3 gates did not pass**"
    assert comment.splitlines()[1] == f"### **✗** edgeopt: tones: {headline}"
    row = next(line for line in comment.splitlines() if line.startswith("| **✗** | int8.onnx on host"))
    assert re.search(r"\| 99\.\d\d % → \d\d\.\d\d % \(-\d+\.\d\d pt\) \|", row)
    assert re.search(r"95% sure: change between -\d+\.\d\d pt and -\d+\.\d\d pt", row)
    _, positions = read_yaml(stricter, "recipe")
    lines = {positions["gates", 0][0], positions["optimize", "int8"][0]}
    places = [
        re.match(r"::error file=the recipe\.yaml,line=(\d+),title=", each) for each in failing.annotations
    ]
    assert all(places) and {int(place[1]) for place in places if place} >= lines
    assert failing.summary.count("### **✗** edgeopt") == 1
    assert len(failing.artifacts) == 1

    # From a fork, the token may not comment: the summary and the artifact remain, and the verdict.
    host.read_only = True
    known = dict(host.comments)
    fork = play(workspace, host, **usual)
    assert fork.codes["ci"] == 1 and host.comments == known
    assert "no comment on the pull request: GitHub refused the comment: 403" in fork.log
    assert fork.summary.startswith("### **✗** edgeopt") and len(fork.artifacts) == 1


@pytest.mark.slow
def test_a_broken_recipe_is_marked_at_its_line_and_each_recipe_has_its_comment(
    workspace: Path, host: Host
) -> None:
    for name in ("one.yaml", "two.yaml"):
        (workspace / name).write_text(RECIPE.replace("quantize: int8", "quantise: int8"))
    jobs = [
        play(workspace, host, recipe="one.yaml"),
        play(workspace, host, recipe="two.yaml", title="on the board"),
        play(workspace, host, recipe="one.yaml"),
    ]
    assert [job.codes["ci"] for job in jobs] == [2, 2, 2]
    assert len(host.comments) == 2
    assert all("could not run" in text and "quantise" in text for text in host.comments.values())
    (annotation,) = jobs[0].annotations
    assert annotation.startswith("::error file=one.yaml,line=10,title=recipe::optimize.int8")
    assert jobs[0].outputs == {
        "verdict": "error",
        "comment": "edgeopt-run/comment.md",
        "report": "",
        "junit": "",
    }
    assert [list(job.artifacts) for job in jobs[:2]] == [
        ["edgeopt-one.yaml"],
        ["edgeopt-two.yaml-on-the-board"],
    ]
    assert {token for _, _, token in host.requests} == {"Bearer secret"}


@pytest.mark.slow
def test_a_merge_request_on_gitlab_explains_itself(workspace: Path, host: Host) -> None:
    fake_pip(workspace, "exit 0")
    stricter = RECIPE.replace("max: 64 KiB", "max: 1 KiB")
    (workspace / "the recipe.yaml").write_text(stricter)
    inputs = {"recipe": "the recipe.yaml", "package": "edgeopt[onnx] @ git+https://code.example/edgeopt@v1"}
    inputs |= {"arguments": "--set 'optimize.int8={quantize: int8}' --format onnx", "out": "the run"}
    code, log, job = play_gitlab(workspace, host, **inputs)
    assert code == 1, log
    assert (workspace / "asked").read_text() == f"-m pip install {inputs['package']}\n"
    (comment,) = host.comments.values()
    assert comment.splitlines()[1] == "### **✗** edgeopt: tones: **1 of 3 gates did not pass**"
    assert "[report](https://code.example/jobs/42/artifacts/browse)" in comment
    assert {(path, token) for _, path, token in host.requests} == {
        ("/api/v4/projects/3/merge_requests/7/notes", "secret")
    }
    reports = job["artifacts"]["reports"]
    (issue,) = json.loads((workspace / reports["codequality"]).read_text())
    assert issue["location"] == {"path": "the recipe.yaml", "lines": {"begin": 14}}
    assert "EDGEOPT_VERDICT=fail\n" in (workspace / reports["dotenv"]).read_text()
    assert (workspace / reports["junit"][0]).exists() and job["artifacts"]["paths"] == ["the run"]
    # A mistake in the baseline: the same comment says it.
    code, log, _ = play_gitlab(workspace, host, **inputs, baseline="no such.json")
    assert code == 2 and "cannot read the baseline no such.json" in log
    assert "cannot read the baseline no such.json" in host.comments[1] and len(host.comments) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set 'formats=[onnx]", "--arguments: no closing quotation"),
        ("--max-dorp 0.1", "--arguments: No such option: --max-dorp"),
        ("--max-drop little", "--arguments: Invalid value for '--max-drop'"),
    ],
)
def test_wrong_arguments_are_explained_in_the_pull_request(
    workspace: Path, host: Host, arguments: str, message: str
) -> None:
    job = play(workspace, host, recipe="the recipe.yaml", title="on the board", arguments=arguments)
    assert job.codes["ci"] == 2
    assert message in job.log and len(job.annotations) == 1
    ((_, comment),) = host.comments.items()
    for text in (comment, job.summary):
        assert "on the board" in text and message in text
    assert job.outputs["verdict"] == "error"
    assert list(job.artifacts) == ["edgeopt-the-recipe.yaml-on-the-board"]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_scripts_have_no_findings_of_shellcheck(tmp_path: Path) -> None:
    for number, (variables, script) in enumerate(scripts()):
        declared = "".join(f"export {name}=\n" for name in variables)
        (tmp_path / f"{number}.sh").write_text(f"#!/bin/bash\n{declared}{script}")
    files = sorted(map(str, tmp_path.glob("*.sh")))
    assert len(files) == 4
    found = subprocess.run(["shellcheck", *files], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_an_input_is_never_part_of_a_script(workspace: Path) -> None:
    job = play(
        workspace, recipe="$(touch evil); touch evil", title="$(touch evil)", arguments="$(touch evil)"
    )
    assert job.codes["ci"] == 2
    assert not (workspace / "evil").exists()
    assert play(workspace, recipe="--help").codes["ci"] == 2  # a recipe of that name, not an option


@pytest.mark.parametrize(
    ("install", "requirement"),
    [
        ("keras,onnx", f"{ROOT}[keras,onnx]"),
        ("edgeopt[keras,onnx]", f"{ROOT}[keras,onnx]"),
        ("edgeopt", str(ROOT)),
        ("./edgeopt.whl[onnx]", "./edgeopt.whl[onnx]"),
        ("edgeopt==1.0", None),
        ("https://example.com/edgeopt.whl", None),
    ],
)
def test_edgeopt_is_never_installed_by_its_name(
    workspace: Path, install: str, requirement: str | None
) -> None:
    fake_pip(workspace, "exit 9")
    (workspace / "edgeopt.whl").touch()
    job = play(workspace, recipe="digits-torch", install=install)
    assert job.codes["install"] == (9 if requirement else 2)
    if requirement:
        expected = f"-m pip install --constraint {ROOT}/constraints.txt {requirement}\n"
        assert (workspace / "asked").read_text() == expected
