"""What many tests need: recipes written in place, and where the real models lie."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the store or the environments of whoever runs it."""
    monkeypatch.delenv("EDGEOPT_STORE", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def needs_real_data() -> Path:
    """The folder of real models and data; a test is skipped where there is none."""
    root = os.environ.get("EDGEOPT_DATA")
    if not root:
        pytest.skip("EDGEOPT_DATA is not set: no real models here")
    return Path(root).resolve()


@pytest.fixture
def real_data(needs_real_data: Path) -> Path:
    """The same, for a single test."""
    return needs_real_data


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe about the shipped digits model; lines given replace or follow the usual ones."""

    def write(text: str = "", **parts: str) -> Path:
        usual = {
            "version": "1",
            "name": "test",
            "model": f"{{path: {RECIPES / 'digits' / 'digits.keras'}, preprocess: {{scale: 1/16}}}}",
            "data": "{calibration: {uses: digits, with: {part: calibration, limit: 50}}, "
            "evaluation: {uses: digits, with: {part: evaluation, limit: 100}}}",
            "metric": "top1",
            "formats": "[tflite]",
        } | parts
        path = tmp_path / "recipe.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in usual.items() if value) + text, "utf-8")
        return path

    return write
