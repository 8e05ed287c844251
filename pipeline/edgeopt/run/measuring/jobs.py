"""One job on a device, from the machine that reaches it: files there, the run, and its results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgeopt.config.references import import_path
from edgeopt.devices.device import Device
from edgeopt.errors import DeviceError
from edgeopt.formats.known import placed_files
from edgeopt.model import Model
from edgeopt.plugin import Connection, ConnectionCutError, Link
from edgeopt.run.measuring.outcome import RESULT, files_of_result
from edgeopt.run.measuring.probe import connect, last_line, retried
from edgeopt.run.measuring.protocol import Job, JobFailure, JobResult, read_response

JOB_SECONDS = 1800.0


class JobFiles(NamedTuple):
    """What a job needs on the device."""

    agent: Path
    model: Model
    inputs: Sequence[Path]
    samples: int
    baseline: Model | None = None
    """A model of the same format, timed interleaved with ``model``."""


@retried
def run_job(
    device: Device,
    request: Job,
    files: JobFiles,
    folder: Path,
    *,
    shared: bool = False,
    connection: Connection | None = None,
) -> None:
    """Run a job, whose request names no files yet; its results are fetched into ``folder``.

    Raises:
        DeviceError: the device is unreachable, or has returned nothing.
    """
    names = [f"input{index}.npy" for index in range(len(files.inputs))]
    with connect(device, shared=shared, connection=connection) as link:
        link.put(files.agent, "agent.pyz")
        for path, name in zip(files.inputs, names, strict=True):
            link.put(path, name)
        job: Job = {
            **request,
            "model": put_model(link, files.model, "model"),
            "inputs": names,
            "samples": files.samples,
            "python_path": _python_path(files.model.code),
            "baseline": put_model(link, files.baseline, "baseline") if files.baseline is not None else None,
        }
        result, _ = execute(link, device, job, folder)
        if result is not None:
            for name in files_of_result(result, timed=job["latency"] is not None):
                link.get(name, folder / name)


def execute(link: Link, device: Device, job: Job, folder: Path) -> tuple[JobResult | None, JobFailure | None]:
    """Run a job whose files have been sent; fetches ``result.json`` into ``folder``.

    Raises:
        DeviceError: the agent has returned nothing, or a malformed response.
    """
    (folder / "job.json").write_text(json.dumps(job), "utf-8")
    link.put(folder / "job.json", "job.json")
    process = link.python(["agent.pyz", "run", "job.json"], timeout=JOB_SECONDS)
    try:
        link.get(RESULT, folder / RESULT)
    except ConnectionCutError:
        raise
    except DeviceError as error:
        exit_status = (
            f"killed by signal {-process.returncode}"
            if process.returncode < 0
            else f"exit code {process.returncode}"
        )
        raise DeviceError(
            f"device {device.name}: the agent exited without a result ({exit_status}): "
            f"{last_line(process.stderr)}"
        ) from error
    return read_response((folder / RESULT).read_bytes(), device.name)


def put_model(link: Link, model: Model, stem: str) -> str:
    """Send all files of a model, renamed to ``stem``; returns the remote name of the main file."""
    name = stem + model.path.suffix
    if model.path.is_dir():
        link.put(model.path, name)
        return name
    for file, place in placed_files(model, Path(name)).items():
        link.put(file, place.name)
    return name


def _python_path(code: Path | None) -> list[str]:
    """Where the code of a model is imported from: a folder, or a file with custom layers."""
    folder = code.parent if code is not None and code.is_file() else code
    return [str(place) for place in import_path(folder)] if folder is not None else []
