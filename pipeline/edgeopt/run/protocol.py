"""The host's side of what edgeopt and the agent say to each other; the types are the agent's own.

Nothing else reads what a device answered before it was checked here.
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
    Measured,
    Moment,
    Probe,
    ProtocolError,
    Spell,
    Tensor,
    Timing,
)
from edgeopt.errors import DeviceError

__all__ = [
    "PROTOCOL",
    "Job",
    "JobFailure",
    "JobResult",
    "LayerInfo",
    "Measured",
    "Moment",
    "Probe",
    "Spell",
    "Tensor",
    "Timing",
    "read_answer",
    "read_probe",
    "schema",
]


def read_answer(text: str | bytes, device: str) -> tuple[JobResult | None, JobFailure | None]:
    """What the agent wrote about a job: its result or why it failed, the other being None.

    Raises:
        DeviceError: it is no answer, with the field that is wrong.
    """
    try:
        return protocol.checked_answer(_parsed(text))
    except ProtocolError as error:
        raise _malformed(device, error) from error


def read_probe(text: str | bytes, device: str) -> Probe:
    """What the agent found on a device.

    Raises:
        DeviceError: as `read_answer`.
    """
    try:
        found: Probe = protocol.checked(_parsed(text), Probe)
    except ProtocolError as error:
        raise _malformed(device, error) from error
    return found


def schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a type of the protocol."""
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
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("message", f"is not JSON: {str(error)[:100]}") from error


def _malformed(device: str, error: ProtocolError) -> DeviceError:
    return DeviceError(
        f"device {device} returned a malformed response: {error}",
        fix="an agent of another version, or another program, answered; nothing of it was used",
    )
