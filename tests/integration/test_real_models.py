"""The recipes about real models, on real data: what edgeopt promises of them, held in every format."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.commands.optimize import optimize

FORMATS = ("tflite", "onnx", "torchscript", "executorch")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_workers")]


@pytest.fixture(
    scope="module",
    params=[
        ("mlperf-tiny-kws", 0.905, 400),
        ("mlperf-tiny-resnet8", 0.8879, 446),
        ("resnet20-cifar10", 0.9103, 446),
    ],
    ids=lambda param: param[0],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    request.getfixturevalue("needs_real_data")
    recipe, accuracy, samples = request.param
    out = tmp_path_factory.mktemp(recipe)
    done = optimize(recipe, out=out, store=out / "store")
    assert done.exit_code == 0, done
    report = json.loads((out / "report.json").read_text())
    assert isinstance(report, dict)
    return report | {"expected": accuracy, "n": samples, "out": out}


def test_the_source_has_its_known_accuracy(run: dict[str, Any]) -> None:
    top1 = run["source"]["measurements"]["top1"]
    assert top1["n"] == run["n"]
    assert top1["value"] == pytest.approx(run["expected"], abs=5e-5)


def test_every_cell_holds_its_accuracy(run: dict[str, Any]) -> None:
    rows = run["results"]
    assert {(row["variant"], row["format"]) for row in rows} == {
        (v, f) for v in ("float", "int8") for f in FORMATS
    }
    for row in rows:
        name, values = f"{row['variant']}.{row['format']}", row["measurements"]
        assert row["status"] == "ok", (name, row["reason"])
        assert values["latency_p50_ms"]["value"] > 0
        assert values["peak_memory_bytes"]["value"] > 0
        if row["variant"] == "float":
            assert values["max_abs_error"]["value"] < 1e-4, name
            assert values["agreement"]["value"] == 1.0, name
        else:
            assert values["top1_drop"]["value"] <= 0.01, name
            assert values["agreement"]["value"] >= 0.95, name
            assert values["size_bytes"]["value"] < 0.56 * _size(rows, row["format"]), name


def _size(rows: list[dict[str, Any]], format_name: str) -> float:
    (row,) = [row for row in rows if (row["variant"], row["format"]) == ("float", format_name)]
    return float(row["measurements"]["size_bytes"]["value"])


def test_kws_int8_tflite_is_no_larger_than_the_published_file(run: dict[str, Any], real_data: Path) -> None:
    if run["recipe"] != "mlperf-tiny-kws":
        pytest.skip("about the keyword model only")
    published = (real_data / "mlperf-tiny" / "kws_reference_int8.tflite").stat().st_size
    assert published == 53936
    assert (run["out"] / "models" / "int8.tflite").stat().st_size <= published
