"""The command line in this process, in a folder with a good recipe; inputs differ from it in one thing."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeopt.cli import main

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
RECIPE = """\
version: 1
name: test
model: {{path: {model}, preprocess: {{scale: 1/16}}}}
data:
  calibration: {{uses: npz, with: {{path: good.npz}}}}
  evaluation: {{uses: npz, with: {{path: good.npz}}}}
  allow_leak: true
metric: top1
formats: [tflite]
gates: [{{metric: top1, max_drop: 0.05}}]
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the recipe ``good.yaml`` and its data, which is the working folder."""
    folder = tmp_path_factory.mktemp("input")
    rng = np.random.default_rng(0)
    np.savez(folder / "good.npz", x=rng.integers(0, 16, (20, 8, 8, 1)).astype(np.uint8), y=np.arange(20) % 10)
    model = RECIPES / "digits" / "digits.keras"
    (folder / "good.yaml").write_text(RECIPE.format(model=model), "utf-8")
    (folder / "model.keras").write_bytes(model.read_bytes())
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def edgeopt(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; returns its exit code and everything that it printed."""
    monkeypatch.delenv("EDGEOPT_DATA", raising=False)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edgeopt", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        code = caught.value.code
        return (code if isinstance(code, int) else 0), out + err

    return run


@pytest.fixture
def refused(edgeopt: Run) -> Callable[..., None]:
    """Check that a command ends with a code, and with a short message that has the words."""

    def check(words: str, *arguments: str, code: int = 2) -> None:
        found, message = edgeopt(*arguments)
        flat = " ".join(message.replace("│", " ").split())  # usage errors are framed, and wrapped
        assert found == code, flat[-2000:]
        assert words in flat, flat[-2000:]
        assert "Traceback" not in message
        assert len(message) < 4000
        lines = [line for line in message.splitlines() if len(line) > 10]
        assert all(lines.count(line) < 4 for line in lines), "a message repeats itself"

    return check
