"""``agent.pyz probe`` tells what the device is; ``agent.pyz run job.json`` carries out a job."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from edgeopt_agent import PROTOCOL
from edgeopt_agent.failure import AgentError, one_line, trace_tail

USAGE = "usage: agent.pyz probe | agent.pyz run JOB.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def main(arguments: list[str]) -> int:
    """Exit code 0 when done, 1 when the job failed (``result.json`` says why), 2 for wrong usage."""
    if arguments == ["probe"]:
        from edgeopt_agent.probe import probe

        print(json.dumps(probe(), indent=1))
        return 0
    if len(arguments) == 2 and arguments[0] == "run":
        return run(Path(arguments[1]).resolve())
    print(USAGE, file=sys.stderr)
    return 2


def run(path: Path) -> int:
    """Carry out the job in ``path`` and write ``result.json`` beside it, whatever happens."""
    report = Report(path.parent)
    with report:
        job = read_job(path)
        for variable in THREAD_VARIABLES:
            # Read once, when numpy and the runtimes are imported: hence before those imports.
            os.environ[variable] = str(job.get("threads", 1))
        from edgeopt_agent.job import carry_out

        report.result = carry_out(job, path.parent)
    write_json(path.parent / "result.json", report.result)
    if report.result["ok"]:
        return 0
    print(report.result["error"], file=sys.stderr)
    return 1


def read_job(path: Path) -> dict[str, Any]:
    """The job as a dictionary.

    Raises:
        AgentError: kind ``input``, when it is no job or speaks another protocol.
    """
    try:
        job = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AgentError("input", f"{path.name} cannot be read: {one_line(error)}") from error
    if not isinstance(job, dict) or job.get("protocol") != PROTOCOL:
        spoken = job.get("protocol") if isinstance(job, dict) else None
        raise AgentError("input", f"{path.name} speaks protocol {spoken}, this agent speaks {PROTOCOL}")
    for key in ("runtime", "model"):
        if not isinstance(job.get(key), str):
            raise AgentError("input", f"{path.name} has no {key!r}")
    return job


class Report:
    """Turns whatever ends the block into a result, so that the other end always gets an answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: dict[str, Any] = {}

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return True
        if not isinstance(error, Exception):
            return False
        known = isinstance(error, AgentError)
        # The job folder is gone when this is read, so its path would only mislead.
        message = one_line(error).replace(str(self.folder) + os.sep, "")
        self.result = {
            "protocol": PROTOCOL,
            "ok": False,
            "error": message if known else f"{type(error).__name__}: {message}",
            "kind": error.kind if isinstance(error, AgentError) else "internal",
            "detail": trace_tail(error),
        }
        return True


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write completely or not at all."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(value, indent=1), "utf-8")
    os.replace(scratch, path)
