"""Runs jobs on one device: sends the agent, a model, its inputs and a request, and fetches the results.

Results are cached: the same model, data, runtime and device are not measured twice.
"""

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt.config import absent
from edgeopt.config.files import file_digest
from edgeopt.config.references import import_path
from edgeopt.devices.device import Device
from edgeopt.errors import DeviceError, UsageError
from edgeopt.formats.known import model_digest, placed_files
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import ConnectionCutError, Link, digest_of
from edgeopt.recipe.document import Latency
from edgeopt.run.measuring.outcome import OUTPUTS, RESULT, Outcome, files_of_result, read_outcome
from edgeopt.run.measuring.probe import (
    check_requirements,
    connect,
    fetch_probe,
    last_line,
    retried,
    stable_fields,
)
from edgeopt.run.measuring.protocol import (
    PROTOCOL,
    Job,
    JobFailure,
    JobResult,
    Probe,
    Timing,
    read_response,
)
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store

JOB_SECONDS = 1800.0


def timing_of(part: Latency) -> Timing:
    """The recipe's latency settings as a protocol message."""
    return {
        "min_runs": part.min_runs,
        "min_seconds": part.min_seconds,
        "max_seconds": part.max_seconds,
        "repeats": part.repeats,
    }


@dataclass
class Bench:
    """Runs jobs on a device, one at a time; ``failure`` is the reason if the device is unusable."""

    device: Device
    agent: Path
    store: Store
    trust: bool = False
    """Whether models may contain more than a network; see ``Job.trust``."""
    shared: bool = False
    """Whether other processes may use the device meanwhile: if no job of this one is timed."""
    probe: Probe | None = None
    failure: str = ""

    def open(self) -> "Bench":
        """Probe the device; sets ``failure`` if it is unreachable or lacks what jobs need.

        Raises:
            MissingPackageError: NumPy is not installed here.
        """
        absent.require()
        try:
            self.probe = fetch_probe(self.device, self.agent, shared=self.shared)
            check_requirements(self.device, self.probe)
        except (DeviceError, UsageError) as error:  # the latter: a connection of the user that is none
            self.failure = str(error)
        return self

    def run(
        self,
        model: Model,
        evaluation: Evaluation,
        *,
        limit: int | None = None,
        baseline: Model | None = None,
        latency: Timing | None = None,
        options: Mapping[str, Any] | None = None,
        batch: int = 1,
        layers: Sequence[int] = (),
    ) -> Outcome:
        """Run one model on the evaluation samples; a failure is returned as an outcome with ``error``.

        Args:
            model: the model to run.
            evaluation: the samples.
            limit: use only the first samples.
            baseline: a model of the same format, timed interleaved with ``model``.
            latency: how long to measure latency; ignored for an emulated device.
            options: options of the runtime that override those of the device.
            batch: samples per run, if the model allows it.
            layers: samples for which to keep every operator's outputs.
        """
        runtime = self.device.runtimes[model.format]
        if self.failure:
            return Outcome(runtime, self.failure, unreachable=True)
        timing = None if self.device.emulated else latency
        custom = model.code if model.code is not None and model.code.is_file() else None
        options = dict(options or {}) | ({"code": custom.stem} if custom else {})
        request = self._job(
            runtime, options=options, outputs=OUTPUTS, batch=batch, latency=timing, layers=layers
        )
        key = digest_of(
            ({"code": file_digest(custom)} if custom else {})
            | {
                "request": request,
                "agent": file_digest(self.agent),
                "device": [self.device.name, platform.node(), stable_fields(self.probe)],
                "model": [model_digest(model), model.format],
                "baseline": model_digest(baseline) if baseline is not None and latency else "",
                "data": evaluation.key(model.inputs, limit),
            }
        )
        read = partial(read_outcome, runtime, model=model, device=self.device.name)
        entry = self.store.get(key)
        if entry is not None:
            return read(folder=entry.folder, cached=True)
        try:
            with self.store.scratch() as folder:
                self._send(request, model, baseline if latency else None, evaluation, limit, folder)
                outcome = read(folder=folder, cached=False)
                if outcome.error:
                    return outcome
                entry = self.store.put(key, folder, {"measurement": self.device.name})
        except DeviceError as error:
            return Outcome(runtime, str(error))
        return read(folder=entry.folder, cached=False)

    def _job(
        self,
        runtime: str,
        *,
        options: Mapping[str, Any] = {},
        outputs: str | None = None,
        batch: int = 1,
        latency: Timing | None = None,
        layers: Sequence[int] = (),
    ) -> Job:
        """A job without file names, which are added when the files are sent."""
        return {
            "protocol": PROTOCOL,
            "runtime": runtime,
            "threads": self.device.threads,
            "options": self.device.options.get(runtime, {}) | dict(options),
            "trust": self.trust,
            "model": "",
            "inputs": None,
            "samples": None,
            "outputs": outputs,
            "batch": batch,
            "latency": latency,
            "baseline": None,
            "python_path": [],
            "layers": list(layers),
        }

    @retried
    def describe(self, model: Model) -> tuple[TensorSpec, ...]:
        """The inputs of a model, as reported by the runtime that loads it.

        Raises:
            DeviceError: the runtime rejects the model, or its format does not declare inputs.
        """
        job = self._job(self.device.runtimes[model.format])
        scratch = tempfile.TemporaryDirectory(prefix="edgeopt-")
        with scratch as name, connect(self.device, shared=self.shared) as link:
            folder = Path(name)
            link.put(self.agent, "agent.pyz")
            job["model"] = _put(link, model, "model")
            result, failure = self._execute(link, job, folder)
        if failure is not None:
            raise DeviceError(f"{model.path.name} on {self.device.name}: {failure['error']}")
        inputs = result["inputs"] if result is not None else None
        if not inputs:
            raise DeviceError(
                f"{model.path.name} on {self.device.name}: the runtime does not report the model's inputs",
                fix="give the shape of every input: --shape 1,3,32,32",
            )
        return tuple(TensorSpec.model_validate(spec) for spec in inputs)

    @retried
    def _send(
        self,
        request: Job,
        model: Model,
        baseline: Model | None,
        evaluation: Evaluation,
        limit: int | None,
        folder: Path,
    ) -> None:
        inputs, count = evaluation.files(model.inputs, limit)
        names = [f"input{index}.npy" for index in range(len(inputs))]
        with connect(self.device, shared=self.shared) as link:
            link.put(self.agent, "agent.pyz")
            for path, name in zip(inputs, names, strict=True):
                link.put(path, name)
            job: Job = {
                **request,
                "model": _put(link, model, "model"),
                "inputs": names,
                "samples": count,
                "python_path": _python_path(model.code),
                "baseline": _put(link, baseline, "baseline") if baseline is not None else None,
            }
            result, _ = self._execute(link, job, folder)
            if result is not None:
                for name in files_of_result(result, timed=job["latency"] is not None):
                    link.get(name, folder / name)

    def _execute(self, link: Link, job: Job, folder: Path) -> tuple[JobResult | None, JobFailure | None]:
        """Run a job whose files have been sent; fetches ``result.json`` into ``folder``."""
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
                f"device {self.device.name}: the agent exited without a result ({exit_status}): "
                f"{last_line(process.stderr)}"
            ) from error
        return read_response((folder / RESULT).read_bytes(), self.device.name)


def _python_path(code: Path | None) -> list[str]:
    """Where the code of a model is imported from: a folder, or a file with custom layers."""
    folder = code.parent if code is not None and code.is_file() else code
    return [str(place) for place in import_path(folder)] if folder is not None else []


def _put(link: Link, model: Model, stem: str) -> str:
    """Send all files of a model, renamed to ``stem``; returns the remote name of the main file."""
    name = stem + model.path.suffix
    if model.path.is_dir():
        link.put(model.path, name)
        return name
    for file, place in placed_files(model, Path(name)).items():
        link.put(file, place.name)
    return name
