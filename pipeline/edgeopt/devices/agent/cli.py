"""``agent.pyz probe`` describes the device; ``agent.pyz run job.json`` runs a job."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from edgeopt_agent.failure import AgentError, one_line, trace_tail
from edgeopt_agent.protocol import PROTOCOL, Job, JobFailure, JobResult, ProtocolError, checked

USAGE = "usage: agent.pyz probe | agent.pyz run JOB.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def main(arguments: list[str]) -> int:
    """Run the command; exit code 0: done, 1: the job failed (see ``result.json``), 2: wrong usage."""
    if arguments == ["probe"]:
        from edgeopt_agent.probe import probe

        print(json.dumps(probe(), indent=1))
        return 0
    if len(arguments) == 2 and arguments[0] == "run":
        return run(Path(arguments[1]).resolve())
    print(USAGE, file=sys.stderr)
    return 2


def run(path: Path) -> int:
    """Run the job in ``path`` and write ``result.json`` next to it, also after a failure."""
    report = Report(path.parent)
    with report:
        job = read_job(path)
        for variable in THREAD_VARIABLES:
            # numpy and the runtimes read these variables once, on import.
            os.environ[variable] = str(job["threads"])
        from edgeopt_agent.job import run_job

        report.result = run_job(job, path.parent)
    write_json(path.parent / "result.json", report.result)
    if report.error is None:
        return 0
    print(report.error, file=sys.stderr)
    return 1


def read_job(path: Path) -> Job:
    """Read and validate a job.

    Raises:
        AgentError: kind ``input``: the file is not a job, or uses another protocol version.
    """
    try:
        job = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AgentError("input", f"{path.name} cannot be read: {one_line(error)}") from error
    try:
        validated: Job = checked(job, Job)
    except ProtocolError as error:
        raise AgentError("input", f"{path.name}: {error}") from error
    return validated


class Report:
    """A context manager that turns any exception into a result: the caller always gets a response."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: JobResult | JobFailure
        self.error: str | None = None

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return True
        if not isinstance(error, Exception):
            return False
        known = isinstance(error, AgentError)
        # The job folder is removed before the message is read, so its path is omitted.
        message = one_line(error).replace(str(self.folder) + os.sep, "")
        failure: JobFailure = {
            "protocol": PROTOCOL,
            "ok": False,
            "error": message if known else f"{type(error).__name__}: {message}",
            "kind": error.kind if isinstance(error, AgentError) else "internal",
            "detail": trace_tail(error),
        }
        self.result, self.error = failure, failure["error"]
        return True


def write_json(path: Path, value: Any) -> None:
    """Write the file atomically."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(value, indent=1), "utf-8")
    os.replace(scratch, path)
