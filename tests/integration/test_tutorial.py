"""The tutorial of the documentation: every command in it, in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
COMMAND = re.compile(r"^    ((?:edgeopt|openssl) (?:.*\\\n)*.*)$", re.MULTILINE)
FAILING = "max: 16 KiB"
"""Part of the command whose gate fails."""


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    text, _, own_model = TUTORIAL.read_text("utf-8").partition("## Your own model")
    commands = COMMAND.findall(text)
    assert len(commands) == text.count("\n    edgeopt ") + text.count("\n    openssl ") > 8 and own_model
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shown = {}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (FAILING in command), f"{command}\n{done.stdout}{done.stderr}"
        shown[command] = done.stdout
    first, *_, last = shown.values()
    for size in re.findall(r"^(?:float|int8) .* ([\d,]+ B)  ", text, re.MULTILINE):
        assert size in first
    assert "all 4 gates pass" in first
    assert "int8.tflite for host: same" in last
