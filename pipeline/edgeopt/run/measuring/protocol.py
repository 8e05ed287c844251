"""The host's side of the agent protocol; the message types are the agent's.

Every response from a device is validated here before it is used.
"""

import json
from typing import Any, get_args, get_origin

from edgeopt.devices.agent import protocol
from edgeopt.devices.agent.protocol import (
    PROTOCOL,
    Job,
    JobFailure,
    JobResult,
    LayerInfo,
    MachineState,
    Measured,
    Probe,
    ProtocolError,
    Tensor,
    TimedInterval,
    Timing,
)
from edgeopt.errors import DeviceError
from edgeopt.formats.wire.bounded import json_value

__all__ = [
    "PROTOCOL",
    "Job",
    "JobFailure",
    "JobResult",
    "LayerInfo",
    "MachineState",
    "Measured",
    "Probe",
    "Tensor",
    "TimedInterval",
    "Timing",
    "read_probe",
    "read_response",
    "schema",
]


def read_response(text: str | bytes, device: str) -> tuple[JobResult | None, JobFailure | None]:
    """Parse and validate ``result.json``: returns a result or a failure, and None for the other.

    Raises:
        DeviceError: the response is malformed; names the invalid field.
    """
    try:
        return protocol.checked_response(_parsed(text))
    except ProtocolError as error:
        raise _malformed(device, error) from error


def read_probe(text: str | bytes, device: str) -> Probe:
    """Parse and validate the agent's description of a device.

    Raises:
        DeviceError: the response is malformed; names the invalid field.
    """
    try:
        probe: Probe = protocol.checked(_parsed(text), Probe)
    except ProtocolError as error:
        raise _malformed(device, error) from error
    return probe


def schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a message type of the protocol."""
    if protocol.is_message(kind):
        fields = protocol.hints(kind)
        properties = {name: schema(each) for name, each in fields.items()}
        if "protocol" in properties:
            properties["protocol"] = {"const": PROTOCOL}
        return {
            "description": " ".join((kind.__doc__ or "").split()),
            "type": "object",
            "properties": properties,
            "required": list(fields),
            "additionalProperties": False,
        }
    inner = get_args(kind)
    if get_origin(kind) is list:
        return {"type": "array", "items": schema(inner[0])}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": schema(inner[1])}
    if inner:
        return {"anyOf": [schema(each) for each in inner]}
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return {"type": plain[kind]} if kind in plain else {}


def _parsed(text: str | bytes) -> Any:
    try:
        value = json_value(text)
        # Escapes can form lone surrogates, which no report can be written with.
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("message", f"is not JSON: {str(error)[:100]}") from error


def _malformed(device: str, error: ProtocolError) -> DeviceError:
    return DeviceError(
        f"device {device} returned a malformed response: {error}",
        fix="the response, which was discarded, is from another version of the agent or another program",
    )
