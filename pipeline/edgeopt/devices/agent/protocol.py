"""The protocol between edgeopt and the agent: a job in ``job.json``, its result in ``result.json``.

Both sides validate messages against these types with `checked`; the error for an invalid message names the
field. edgeopt imports this same file; on the device it is part of the agent, so it needs only Python 3.8.
"""

import math
from typing import Any, Dict, List, Optional, Tuple, TypedDict, Union, get_args, get_origin, get_type_hints

PROTOCOL = 4
"""Incremented when a field is added, is removed, or changes its meaning."""

Scalar = Union[str, int, float, bool, None]


class Timing(TypedDict):
    """How long to measure: a minimum of runs and of seconds, a maximum of seconds, ``repeats`` times."""

    min_runs: int
    min_seconds: float
    max_seconds: float
    repeats: int


class Job(TypedDict):
    """A job for the agent. Except in ``python_path``, paths are names of files in the job's folder."""

    protocol: int
    runtime: str
    threads: int
    options: Dict[str, Any]
    """Options of the runtime, which validates them."""
    trust: bool
    """Load a model that contains more than a network: its code runs, and it may read and write files."""
    model: str
    inputs: Optional[List[str]]
    """One .npy per input; None: only describe the model's inputs, and run it on random values."""
    samples: Optional[int]
    """Number of samples in them: an input without a batch axis, such as a state, has several rows for each.
    None: every row is a sample."""
    outputs: Optional[str]
    """The .npz to write the outputs to; None: outputs are not written."""
    batch: int
    """Samples per run, if the model allows it."""
    latency: Optional[Timing]
    baseline: Optional[str]
    """A model of the same format, timed interleaved with ``model``."""
    python_path: List[str]
    """Folders with the code that a model needs."""
    layers: List[int]
    """Samples for which to keep every operator's outputs."""


class Tensor(TypedDict):
    """An input or output; ``shape`` includes the batch axis, and None for a dynamic dimension."""

    name: str
    shape: List[Optional[int]]
    dtype: str
    scale: Optional[float]
    zero_point: Optional[int]


class Runtime(TypedDict):
    """The runtime that ran the model."""

    name: str
    version: Optional[str]


class Measured(TypedDict):
    """A measurement reported by the runtime."""

    value: float
    unit: str


class LayerInfo(TypedDict):
    """An operator whose outputs were kept."""

    name: str
    operator: str
    scale: Optional[float]


class GpuState(TypedDict):
    """The state of a GPU; None for values that it does not report."""

    clock_mhz: Optional[float]
    memory_clock_mhz: Optional[float]
    temperature_c: Optional[float]
    power_w: Optional[float]


class MachineState(TypedDict):
    """The state of the machine; None for values that it does not report."""

    load: Optional[float]
    governor: Optional[str]
    frequency_mhz: Optional[float]
    temperature_c: Optional[float]
    throttled: Optional[bool]
    gpus: List[GpuState]


class TimedInterval(TypedDict):
    """The machine's state during a timed interval.

    ``other_cores``: used by other programs. ``stolen_cores``: withheld by the host of a virtual machine.
    """

    seconds: float
    before: MachineState
    after: MachineState
    cores: Optional[int]
    other_cores: Optional[float]
    stolen_cores: Optional[float]


class Probe(TypedDict):
    """A device, its numpy and its runtimes: name to version, None if not installed."""

    agent: str
    python: str
    machine: str
    cpu: str
    cpu_flags: List[str]
    cores: int
    memory_bytes: Optional[int]
    gpus: List[Dict[str, Scalar]]
    os: str
    numpy: Optional[str]
    """Without it, the agent describes the device, but runs no job."""
    governor: Optional[str]
    load: Optional[float]
    temperature_c: Optional[float]
    runtimes: Dict[str, Optional[str]]


class JobResult(TypedDict):
    """The result of a job. Its arrays are next to it: ``outputs.npz``, ``times.npz``, ``layers.npz``."""

    protocol: int
    ok: bool
    """True."""
    executed: bool
    """False for a compiler: the model was compiled, but did not run."""
    compiled: bool
    """Whether ``compiled.bin`` was written."""
    runtime: Runtime
    inputs: Optional[List[Tensor]]
    """None if the file does not declare them."""
    outputs: Optional[List[Tensor]]
    output_scales: List[Optional[float]]
    n: int
    """Samples that were run."""
    load_seconds: Optional[float]
    peak_memory_bytes: Optional[int]
    peak_memory_method: str
    non_finite: int
    """Output values that are NaN or infinite."""
    measurements: Dict[str, Measured]
    details: List[Dict[str, Scalar]]
    """One row per operator, if the runtime reports them."""
    notes: List[str]
    conditions: List[TimedInterval]
    layers: List[LayerInfo]
    environment: Probe


class JobFailure(TypedDict):
    """Why a job failed."""

    protocol: int
    ok: bool
    """False."""
    error: str
    kind: str
    """``model``, ``runtime``, ``input`` or ``internal``."""
    detail: str


class ProtocolError(ValueError):
    """A message that does not match its type. ``field`` is the path of the invalid field."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field + ": " + problem)
        self.field = field
        self.problem = problem


def checked(value: Any, kind: Any, field: str = "") -> Any:
    """Return ``value`` after checking that it has the type ``kind``, a message of this module or part of one.

    Raises:
        ProtocolError: it does not; names the first invalid field.
    """
    where = field or "message"
    if kind is Any:
        return value
    if is_message(kind):
        return _checked_message(value, kind, field)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Union:
        if value is None and type(None) in inner:
            return value
        rest = [each for each in inner if each is not type(None)]
        if len(rest) == 1:
            return checked(value, rest[0], field)
        if not any(_fits_plainly(value, each) for each in rest):
            raise ProtocolError(where, "expected " + _named(kind) + ", got " + _shown(value))
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ProtocolError(where, "expected a list, got " + _shown(value))
        for index, each in enumerate(value):
            checked(each, inner[0], where + "[" + str(index) + "]")
        return value
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ProtocolError(where, "expected a mapping, got " + _shown(value))
        for key, each in value.items():
            checked(each, inner[1], _below(field, key))
        return value
    if not _fits_plainly(value, kind):
        raise ProtocolError(where, "expected " + _named(kind) + ", got " + _shown(value))
    return value


def checked_response(value: Any) -> Tuple[Optional[JobResult], Optional[JobFailure]]:
    """Validate ``result.json``: returns a result or a failure, and None for the other.

    Raises:
        ProtocolError: it is neither a result nor a failure.
    """
    if not isinstance(value, dict) or not isinstance(value.get("ok"), bool):
        received = value.get("ok") if isinstance(value, dict) else value
        raise ProtocolError("ok", "expected true or false, got " + _shown(received))
    if value["ok"]:
        return checked(value, JobResult), None
    return None, checked(value, JobFailure)


def hints(kind: Any) -> Dict[str, Any]:
    """The fields of a message and their types."""
    types: Dict[str, Any] = get_type_hints(kind)
    return types


def _checked_message(value: Any, kind: Any, field: str) -> Any:
    if not isinstance(value, dict):
        raise ProtocolError(field or "message", "expected a mapping, got " + _shown(value))
    fields = hints(kind)
    if "protocol" in fields and value.get("protocol") != PROTOCOL:
        received = _shown(value.get("protocol"))
        raise ProtocolError(_below(field, "protocol"), "expected " + str(PROTOCOL) + ", got " + received)
    for name in fields:
        if name not in value:
            raise ProtocolError(_below(field, name), "is missing")
    for name, each in value.items():
        if name not in fields:
            raise ProtocolError(_below(field, str(name)), "is unknown")
        checked(each, fields[name], _below(field, name))
    return value


def is_message(kind: Any) -> bool:
    """Whether a type is one of the messages of this module."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def _fits_plainly(value: Any, kind: Any) -> bool:
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _named(kind: Any) -> str:
    names: Tuple[Tuple[Any, str], ...] = (
        (str, "text"),
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a finite number"),
        (type(None), "null"),
    )
    if get_origin(kind) is Union:
        return " or ".join(_named(each) for each in get_args(kind))
    return next((text for each, text in names if each is kind), str(kind))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _below(field: str, name: str) -> str:
    return field + "." + name if field else name
