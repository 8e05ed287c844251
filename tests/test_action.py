"""The GitHub action: its steps, run as by a runner, in a minimal shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def steps(folder: Path, **inputs: str) -> dict[str, int]:
    """Exit codes of the executed steps, by id; a failing step ends the job."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    given = {name: entry.get("default", "") for name, entry in action["inputs"].items()} | inputs
    codes = {}
    for step in action["runs"]["steps"]:
        wanted = re.fullmatch(r"inputs\.(\S+) != ''", step.get("if", ""))
        if wanted and not given[wanted[1]]:
            continue
        variables = {
            name: re.sub(r"\$\{\{ inputs\.(\S+) \}\}", lambda found: given[found[1]], value)
            for name, value in step["env"].items()
        }
        assert "${{" not in step["run"]
        environment = {
            "PATH": f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            **variables,
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, env=environment, cwd=folder, check=False, capture_output=True, text=True
        )
        codes[step["id"]] = done.returncode
        if done.returncode:
            break
    return codes


@pytest.mark.slow
def test_the_steps_run_in_a_clean_shell(tmp_path: Path) -> None:
    recipe = {"recipe": "digits-torch", "arguments": "--set formats=[onnx] --set gates=[]"}
    assert steps(tmp_path, **recipe) == {"optimize": 0}
    assert (
        tmp_path / "output"
    ).read_text() == "report=edgeopt-run/report.json\njunit=edgeopt-run/junit.xml\n"
    assert "# digits-torch" in (tmp_path / "summary.md").read_text()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    write = ["edgeopt", "baseline", "write", "edgeopt-run", "--out", "baseline.json"]
    subprocess.run(write, cwd=tmp_path, env=environment, check=True, capture_output=True)
    with_baseline = recipe | {"baseline": "baseline.json", "check-arguments": "--undecided pass"}
    assert steps(tmp_path, **with_baseline) == {"optimize": 0, "check": 0}
    assert (tmp_path / "edgeopt-run" / "comment.md").exists()
    # A correct answer is now wrong: the same job blocks.
    report = json.loads((tmp_path / "baseline.json").read_text())
    for entry in report["entries"]:
        entry["measurements"]["size_bytes"] = 10
    (tmp_path / "baseline.json").write_text(json.dumps(report))
    assert steps(tmp_path, **with_baseline) == {"optimize": 0, "check": 1}


def test_an_input_is_never_part_of_a_script(tmp_path: Path) -> None:
    codes = steps(tmp_path, recipe="$(touch evil); touch evil")
    assert codes == {"optimize": 2}
    assert not (tmp_path / "evil").exists()


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
    tmp_path: Path, install: str, requirement: str | None
) -> None:
    python = tmp_path / "python"  # instead of pip: writes its arguments, and fails to end the job
    python.write_text('#!/bin/sh\necho "$@" > asked\nexit 9\n')
    python.chmod(0o755)
    (tmp_path / "edgeopt.whl").touch()
    codes = steps(tmp_path, recipe="digits-torch", install=install)
    assert codes == {"install": 9 if requirement else 2}
    if requirement:
        assert (tmp_path / "asked").read_text() == f"-m pip install {requirement}\n"
