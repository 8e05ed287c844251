"""The shipped JSON Schemas match the code: they accept what it accepts, and reject typing mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from edgeopt.cli import schema as command
from edgeopt.commands import schemas
from edgeopt.devices.device import shipped
from edgeopt.errors import UsageError
from edgeopt.results import Artifact, Hop, Report, Result, Run, SourceResult, Verdict


def mistakes(name: schemas.Name, value: Any) -> list[str]:
    schema = json.loads(schemas.shipped_file(name).read_text("utf-8"))
    errors = Draft7Validator(schema).iter_errors(value)
    return [f"{error.json_path.removeprefix('$')}: {error.message}" for error in errors]


@pytest.mark.parametrize("name", schemas.NAMES)
def test_the_shipped_schema_is_up_to_date(name: schemas.Name) -> None:
    assert schemas.shipped_file(name).read_text("utf-8") == schemas.text(name), "run: make docs"


@pytest.mark.parametrize("name", schemas.NAMES)
def test_no_choice_is_empty_and_every_reference_leads_somewhere(name: schemas.Name) -> None:
    whole = schemas.schema(name)
    text = json.dumps(whole)
    assert '"enum": []' not in text  # editors reject the whole schema because of it
    assert set(re.findall(r'"#/definitions/([^"]+)"', text)) == set(whole["definitions"])
    assert whole["$schema"] == "http://json-schema.org/draft-07/schema#"
    Draft7Validator.check_schema(whole)


@pytest.mark.parametrize("path", sorted(shipped("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_fit(path: Path) -> None:
    assert mistakes("recipe", yaml.safe_load(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("path", sorted(shipped("devices").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_devices_fit(path: Path) -> None:
    assert mistakes("device", yaml.safe_load(path.read_text("utf-8"))) == []


def recipe(text: str = "", **parts: str) -> Any:
    usual = {"version": "1", "name": "a", "model": "{path: model.keras}", "formats": "[tflite]"} | parts
    return yaml.safe_load("".join(f"{key}: {value}\n" for key, value in usual.items() if value) + text)


@pytest.mark.parametrize(
    "text",
    [
        "metric: top1",
        "metric: [top1, {uses: top5}]",
        "metric: {uses: function, with: {function: 'my:metric', arguments: {a: 1}}}",
        "metric: {uses: 'my.package:Metric', with: {whatever: 1}}",
        "data: {evaluation: {uses: npz, with: {path: a.npz, limit: 10}}}",
        "data: {calibration: 'my:Data', evaluation: null}",
        "optimize: {float: , int8: {quantize: int8}}",
        "optimize: {float: {}, a: {quantize: {scheme: int8, per_channel: false}}}",
        "optimize: {a: {stages: [quantize_tflite, 'my:Stage', {uses: 'my:Other', with: {x: 1}}]}}",
        "devices: host",
        "devices: [host, my-board]",
        "limits: {stage_memory: 64 KiB, stage_minutes: 0.5}",
        "limits: {stage_memory: 1000000}",
        "gates: [{metric: top1, max_drop: 0.01, formats: tflite, variants: [a]}]",
        "gates: [{metric: size_bytes, max: 64 KiB}, {metric: latency_p50_ms, max: 12 ms}]",
    ],
)
def test_what_the_loader_takes_fits(text: str) -> None:
    assert mistakes("recipe", recipe(text)) == []


@pytest.mark.parametrize(
    "parts",
    [
        {"formats": "tflite"},
        {"model": "{path: a.keras, preprocess: {scale: 1/255, mean: [0.5, 1/2], std: [1, 2, 3]}}"},
        {
            "model": "{factory: 'net:build', weights: a.pth, arguments: {n: 1}, "
            "inputs: [{name: x, shape: [1, 3, null, 32], layout: NCHW}]}"
        },
    ],
)
def test_short_and_long_forms_of_the_fixed_keys_fit(parts: dict[str, str]) -> None:
    assert mistakes("recipe", recipe(**parts)) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("metrik: top1", ""),
        ("metric: topp1", ".metric"),
        ("data: {evaluation: {uses: nzp, with: {path: a.npz}}}", ".data.evaluation"),
        ("data: {evaluation: {uses: npz, with: {pth: a.npz}}}", ".data.evaluation"),
        ("data: {evaluation: npz}", ".data.evaluation"),  # its path is required
        ("optimize: {a: {quantise: int8}}", ".optimize.a"),
        ("optimize: {a: {quantize: int9}}", ".optimize.a"),
        ("optimize: {a: {quantize: {scheme: int8, per_chanel: true}}}", ".optimize.a"),
        ("optimize: {a: {quantize: int8, stages: [quantize_tflite]}}", ".optimize.a"),
        ("optimize: {float: {quantize: int8}}", ".optimize.float"),
        ("optimize: {'a b': {}}", ".optimize"),
        ("limits: {stage_memory: 64 KB}", ".limits.stage_memory"),
        ("gates: [{metric: top1}]", ".gates[0]"),
        ("gates: [{metric: top1, min: 1, max: 2}]", ".gates[0]"),
    ],
)
def test_mistakes_are_found_where_they_are(text: str, where: str) -> None:
    found = mistakes("recipe", recipe(text))
    assert len(found) == 1
    assert found[0].startswith(f"{where}:")


@pytest.mark.parametrize(
    "parts",
    [
        {"version": "2"},
        {"formats": "[tflight]"},
        {"formats": "[]"},
        {"name": "''"},
        {"model": "{}"},
        {"model": "{path: a, factory: 'net:build', inputs: []}"},
        {"model": "{path: a, weights: b}"},
        {"model": "{path: a, preprocess: {scale: 1/0}}"},
        {"model": "{factory: net.build, inputs: [{name: x, shape: [1]}]}"},
    ],
)
def test_mistakes_in_the_fixed_keys_are_found(parts: dict[str, str]) -> None:
    assert mistakes("recipe", recipe(**parts))


def test_a_device_may_say_little_or_much() -> None:
    assert mistakes("device", {"runtimes": {"tflite": "litert"}}) == []
    much = {
        "connection": {"uses": "local", "with": {"python": "python3"}},
        "runtimes": {"tflite": "litert"},
        "limits": {"flash": "16 MiB", "ram": 1024},
    }
    assert mistakes("device", much) == []
    assert mistakes("device", {"runtimes": {"tflite": "tf-lite"}})
    assert mistakes("device", much | {"connection": {"uses": "locl"}})
    assert mistakes("device", much | {"limits": {"flash": "16 MB of it"}})
    assert mistakes("device", {})


def report() -> Report:
    """One result of each status."""
    value = {"value": 0.9, "n": 10, "ci95": (0.7, 1.0)}
    hop = Hop(stage="keras_to_tflite", produced="tflite", lossless=True, snr_db=130.0, max_abs_error=1e-7)
    rows = (
        Result(
            variant="float",
            format="tflite",
            device="host",
            status="ok",
            artifact=Artifact(path="models/float.tflite", digest="0" * 64, size_bytes=10),
            measurements={"top1": value, "size_bytes": {"value": 10, "unit": "bytes"}},
            hops=(hop,),
            chain=("keras_to_tflite",),
            transposes=0,
        ),
        Result(variant="int8", format="tflite", device="host", status="failed", reason="broken"),
        Result(variant="int8", format="onnx", device="host", status="skipped", reason="not installed"),
    )
    return Report(
        recipe="test",
        run=Run(started="2026-01-01T00:00:00+00:00", seconds=1.0, command="edgeopt", edgeopt="0.1.0"),
        environment={"host": {"cpu": "x", "cores": 2, "governor": None}},
        source=SourceResult(format="keras", path="model.keras", measurements={"top1": value}),
        results=rows,
        gates=(
            Verdict(
                gate="top1 min 0.5", variant="float", format="tflite", device="host", status="pass", limit=0.5
            ),
        ),
    )


def test_a_report_fits_and_tells_every_key() -> None:
    written = json.loads(report().model_dump_json(by_alias=True))
    assert mistakes("report", written) == []
    assert Report.model_validate(written) == report()
    for missing in ("schema", "gates", "source"):
        assert mistakes("report", {key: value for key, value in written.items() if key != missing})
    assert mistakes("report", written | {"results": [written["results"][0] | {"status": "fine"}]})


def test_a_report_of_a_later_version_may_tell_more() -> None:
    written = json.loads(report().model_dump_json(by_alias=True))
    assert mistakes("report", written | {"weather": "fair"}) == []


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    command.schema("device")
    assert json.loads(capsys.readouterr().out)["title"] == "edgeopt device"
    with pytest.raises(UsageError, match="did you mean 'recipe'"):
        command.schema("recipes")
