"""Small models of the zoo (``benchmarks/zoo``) in every format, each file run by its runtime alone."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeopt.commands.plan import plan
from edgeopt.run import build as building
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.store import Store

pytestmark = pytest.mark.slow

ZOO = Path(__file__).resolve().parents[2] / "benchmarks" / "zoo"
CATALOGUE = yaml.safe_load((ZOO / "models.yaml").read_text())
SMALL = {name: entry for name, entry in CATALOGUE.items() if entry.get("small")}
NEEDS = (
    "torch",
    "litert_torch",
    "onnxruntime",
    "executorch",
    "keras",
    "tensorflow",
    "tf2onnx",
    "ai_edge_quantizer",
)
SUFFIXES = {"tflite": "tflite", "onnx": "onnx", "torchscript": "ptl", "executorch": "pte"}
FLOOR = {"float": 90.0, "dynamic_int8": 25.0, "int8": 20.0}
"""Lowest SNR in dB of the worst output."""
LOWER = {
    **{("keras_ds_cnn", f"int8.{suffix}"): 14.0 for suffix in SUFFIXES.values()},  # after a softmax
    ("siamese", "int8.pte"): 12.0,  # the difference of two normalized vectors
    ("conv3d", "int8.pte"): 17.0,  # a convolution of volumes is a sum of quantized ones of images
}
REFUSED = {
    ("conv3d", "int8.ptl"): "layers: {'first': float32, 'second': float32}",
}
"""A part of the message of each cell that may be refused."""


def python(*arguments: Any) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models with their samples and reference outputs."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    made = tmp_path_factory.mktemp("zoo")
    # TensorFlow and torch are never loaded in one process.
    for framework in ("torch", "keras"):
        python(ZOO / "prepare.py", made, *(name for name, entry in SMALL.items() if framework in entry))
    return made


@pytest.fixture(scope="module")
def failures(folder: Path) -> Iterator[dict[tuple[str, str], str]]:
    """Builds all models; yields the reason of each failure, by model and cell."""
    reasons: dict[tuple[str, str], str] = {}
    with pytest.MonkeyPatch.context() as patch, LocalExecutor(None) as executor:
        # The same worker processes for all models: most of the time is the import of the frameworks.
        patch.setattr(building, "executor_for", lambda limit: nullcontext(executor))
        for name in SMALL:
            planned = plan(folder / name / "recipe.yaml")
            for each in planned.impossible:
                reasons[name, f"{each.variant}.{SUFFIXES[each.format]}"] = f"{each.reason}; {each.fix}"
            out = folder / name / "out" / "models"
            out.mkdir(parents=True)
            for built in building.build(planned, Store(folder / "store"), lambda event: None):
                cell = f"{built.branch.variant}.{SUFFIXES[built.branch.format]}"
                if built.complete:
                    model = built.steps[-1].model
                    shutil.copy(model.path, out / cell)
                    sides = {"inputs": model.inputs, "outputs": model.outputs}
                    card = {side: [spec.model_dump() for spec in specs] for side, specs in sides.items()}
                    (out / f"{cell}.json").write_text(json.dumps(card))
                else:
                    reasons[name, cell] = built.failure
    yield reasons


@pytest.fixture(scope="module")
def evaluated(folder: Path, failures: dict[tuple[str, str], str]) -> dict[tuple[str, str], dict[str, Any]]:
    """What each runtime computes, by model and cell."""
    suffixes = tuple(SUFFIXES.values())
    files = [each for each in sorted(folder.glob("*/out/models/*")) if each.name.endswith(suffixes)]
    python(ZOO / "evaluate.py", folder / "results.jsonl", *files)
    rows = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return {(Path(row["file"]).parts[-4], Path(row["file"]).name): row for row in rows}


def cells(name: str) -> list[str]:
    variants = CATALOGUE[name].get("variants", ["float", "int8"])
    return [f"{variant}.{suffix}" for variant in variants for suffix in SUFFIXES.values()]


@pytest.mark.parametrize("name", SMALL)
def test_every_file_computes_what_its_source_does(
    name: str,
    failures: dict[tuple[str, str], str],
    evaluated: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for cell in cells(name):
        key = (name, cell)
        if key in REFUSED and key in failures:
            assert REFUSED[key] in failures[key], (key, failures[key])
            continue
        assert key not in failures, (key, failures[key])
        floor = LOWER.get(key, FLOOR[cell.partition(".")[0]])
        assert evaluated[key].get("snr", -999) >= floor, (key, evaluated[key])
        assert not evaluated[key]["note"], key


@pytest.mark.parametrize("name", SMALL)
def test_no_float_file_stores_weights_twice(
    name: str, folder: Path, failures: dict[tuple[str, str], str]
) -> None:
    models = folder / name / "out" / "models"
    sizes = {suffix: (models / f"float.{suffix}").stat().st_size for suffix in SUFFIXES.values()}
    assert max(sizes.values()) < 1.03 * sizes["onnx"] + 32 * 1024, sizes


def test_no_refusal_is_a_bare_number_or_a_traceback(failures: dict[tuple[str, str], str]) -> None:
    for key, reason in failures.items():
        assert "Traceback" not in reason and "bug:" not in reason and " 0x" not in reason, (key, reason)
