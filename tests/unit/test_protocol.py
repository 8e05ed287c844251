"""The protocol of host and agent: one set of types, validated on both sides; errors name the field."""

import json
import math
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from edgeopt.devices.agent import protocol
from edgeopt.errors import DeviceError
from edgeopt.run.measuring.protocol import read_probe, read_response, schema
from toy_results import PROBE, job_result, spell

FAILURE = {"protocol": protocol.PROTOCOL, "ok": False, "error": "no", "kind": "model", "detail": ""}


def test_a_result_and_a_failure_are_told_apart() -> None:
    result, failure = read_response(json.dumps(job_result(conditions=[spell()])), "pi")
    assert result is not None and result["conditions"][0]["seconds"] == 1.0 and failure is None
    result, failure = read_response(json.dumps(FAILURE), "pi")
    assert result is None and failure is not None and failure["error"] == "no"


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda result: result.pop(name)


def setting(*path: Any) -> Callable[[dict[str, Any]], object]:
    *places, last, value = path

    def change(result: dict[str, Any]) -> None:
        here: Any = result
        for place in places:
            here = here[place]
        here[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("n"), "n: is missing"),
        (setting("n", "4"), "n: expected a whole number, got '4'"),
        (setting("n", True), "n: expected a whole number, got True"),
        (setting("load_seconds", math.nan), "load_seconds: expected a finite number, got nan"),
        (setting("load_seconds", [1]), "load_seconds: expected a finite number, got [1]"),
        (setting("notes", "busy"), "notes: expected a list, got 'busy'"),
        (setting("notes", ["a", 1]), "notes[1]: expected text, got 1"),
        (setting("surprise", 1), "surprise: is unknown"),
        (setting("measurements", {"arena": {"value": 1}}), "measurements.arena.unit: is missing"),
        (setting("measurements", [1]), "measurements: expected a mapping, got [1]"),
        (setting("details", [{"x": []}]), "details[0].x: expected text or a whole number"),
        (setting("environment", "runtimes", {"litert": 2}), "environment.runtimes.litert: expected text"),
        (setting("inputs", [{"name": "x", "shape": [1.5]}]), "inputs[0].dtype: is missing"),
        (setting("protocol", 1), f"protocol: expected {protocol.PROTOCOL}, got 1"),
        (setting("ok", "yes"), "ok: expected true or false, got 'yes'"),
    ],
)
def test_a_malformed_response_names_the_field(change: Callable[[dict[str, Any]], object], told: str) -> None:
    result: Any = json.loads(json.dumps(job_result()))
    change(result)
    with pytest.raises(DeviceError) as caught:
        read_response(json.dumps(result), "pi")
    assert caught.value.message.startswith(f"device pi returned a malformed response: {told}")
    assert "\n" not in caught.value.message and len(caught.value.message) < 200


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '"ok"', "[" * 100_000, b"\xff\xfe", '{"ok": {}}'])
def test_what_is_no_answer_at_all_is_refused(text: str | bytes) -> None:
    for read in (read_response, read_probe):
        with pytest.raises(DeviceError, match="returned a malformed response"):
            read(text, "pi")


def test_the_schema_says_what_the_check_does() -> None:
    kinds: Any = (protocol.Job, protocol.JobResult, protocol.JobFailure, protocol.Probe)
    for kind in kinds:
        jsonschema.Draft202012Validator.check_schema(schema(kind))
    whole = jsonschema.Draft202012Validator(schema(protocol.JobResult))
    whole.validate(job_result(conditions=[spell()], measurements={"a": {"value": 1, "unit": ""}}))
    assert not whole.is_valid(job_result(n=None)) and not whole.is_valid(job_result(more=1))
    jsonschema.validate(PROBE, schema(protocol.Probe))
