"""Synthetic responses of an agent, for tests of their processing."""

from typing import Any

from edgeopt.run.measuring.protocol import PROTOCOL, JobResult, Probe, TimedInterval

PROBE: Probe = {
    "agent": "1",
    "python": "3.11.0",
    "machine": "x86_64",
    "cpu": "toy",
    "cpu_flags": [],
    "cores": 1,
    "memory_bytes": None,
    "gpus": [],
    "os": "Linux",
    "numpy": "2.0",
    "governor": None,
    "load": None,
    "temperature_c": None,
    "runtimes": {"null": "1"},
}


def job_result(**fields: Any) -> JobResult:
    """The result of a job that ran; ``fields`` replace its own."""
    result: Any = {
        "protocol": PROTOCOL,
        "ok": True,
        "executed": True,
        "compiled": False,
        "runtime": {"name": "null", "version": "1"},
        "inputs": None,
        "outputs": None,
        "output_scales": [],
        "n": 1,
        "load_seconds": None,
        "peak_memory_bytes": None,
        "peak_memory_method": "VmHWM",
        "non_finite": 0,
        "measurements": {},
        "details": [],
        "notes": [],
        "conditions": [],
        "layers": [],
        "environment": PROBE,
    }
    return result | fields


def spell(
    before: dict[str, Any] | None = None, after: dict[str, Any] | None = None, **fields: Any
) -> TimedInterval:
    """A timing period on a machine that reports only the given values."""
    silent: Any = dict.fromkeys(("load", "governor", "frequency_mhz", "temperature_c", "throttled"))
    silent["gpus"] = []
    found: Any = {
        "seconds": 1.0,
        "before": silent | (before or {}),
        "after": silent | (after or {}),
        "cores": None,
        "other_cores": None,
        "stolen_cores": None,
    }
    return found | fields
