"""Runs jobs on one device: sends the agent, a model, its inputs and a request, and fetches the results.

Results are cached: the same model, data, runtime and device are not measured twice.
"""

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.config import absent
from edgeopt.config.files import file_digest
from edgeopt.config.references import Code
from edgeopt.devices.device import HOST, Device, machine_of
from edgeopt.devices.locks import device_lock
from edgeopt.errors import DeviceError, DeviceLostError, UsageError
from edgeopt.formats.known import model_digest
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import digest_of
from edgeopt.recipe.document import Latency
from edgeopt.run.measuring.jobs import JobFiles, execute, put_model, run_job
from edgeopt.run.measuring.outcome import OUTPUTS, Outcome, read_outcome
from edgeopt.run.measuring.probe import (
    check_requirements,
    connect,
    fetch_probe,
    retried,
    stable_fields,
)
from edgeopt.run.measuring.protocol import PROTOCOL, Job, Probe, Timing
from edgeopt.run.measuring.queues import run_queues
from edgeopt.run.measuring.remote import Remote
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store

MOST_TOGETHER = 4
"""Models that run at the same time: each has its runtime in memory."""


def timing_of(part: Latency) -> Timing:
    """The recipe's latency settings as a protocol message."""
    return {
        "min_runs": part.min_runs,
        "min_seconds": part.min_seconds,
        "max_seconds": part.max_seconds,
        "repeats": part.repeats,
    }


class Untimed(NamedTuple):
    """A model to run on the first ``limit`` samples; the fields are those of `Bench.run`."""

    model: Model
    limit: int | None = None
    options: Mapping[str, Any] | None = None


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
    code: Code | None = None
    """Code of the user that models refer to by its folder."""
    probe: Probe | None = None
    failure: str = ""
    remote: Remote | None = field(init=False, default=None)
    """The device, if a node of a cluster holds it."""

    def __post_init__(self) -> None:
        if self.device.name != HOST:
            try:
                self.remote = Remote.of(self.device)
            except DeviceError as error:
                self.failure = str(error)

    @property
    def machine(self) -> str:
        """See `machine_of`; a device at a node is a machine of its own."""
        return f"device {self.device.name}" if self.remote is not None else machine_of(self.device)

    def open(self) -> "Bench":
        """Probe the device; sets ``failure`` if it is unreachable or lacks what jobs need.

        Raises:
            MissingPackageError: NumPy is not installed here.
        """
        absent.require()
        if self.failure:
            return self
        try:
            if self.remote is not None:
                self.probe = self.remote.probe(self.agent)
                self.store.notes.append(f"{self.device.name} was measured at the node {self.remote.where}")
            else:
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
        request, key = self._asked(model, evaluation, limit, baseline, latency, options, batch, layers)
        read = partial(read_outcome, runtime, model=model, device=self.device.name)
        entry = self.store.get(key)
        if entry is not None:
            return read(folder=entry.folder, cached=True)
        inputs, count = evaluation.files(model.inputs, limit)
        files = JobFiles(self.agent, model, inputs, count, baseline if latency else None)
        try:
            with self.store.scratch() as folder:
                if self.remote is not None:
                    self.remote.run(key, request, files, folder, self.code)
                    entry = self.store.get(key)
                    if entry is None:
                        raise DeviceLostError("its results cannot be read from the store", fix="run again")
                else:
                    run_job(self.device, request, files, folder, shared=self.shared)
                    outcome = read(folder=folder, cached=False)
                    if outcome.error:
                        return outcome
                    entry = self.store.put(key, folder, {"measurement": self.device.name})
        except DeviceError as error:
            return Outcome(runtime, str(error), lost=isinstance(error, DeviceLostError))
        return read(folder=entry.folder, cached=False)

    def run_together(self, jobs: Sequence[Untimed], evaluation: Evaluation) -> list[Outcome]:
        """Run several models of which nothing is timed, as many at a time as this machine has cores for.

        Meanwhile no other process measures on the device. For a device that is this machine.
        """
        outcomes: dict[int, Outcome] = {}

        def run(bench: Bench, index: int) -> None:
            model, limit, options = jobs[index]
            outcomes[index] = bench.run(model, evaluation, limit=limit, options=options)

        left = [index for index, job in enumerate(jobs) if not self._has(job, evaluation)]
        if self.probe is not None and len(left) > 1:
            most = min(len(left), MOST_TOGETHER, self.probe["cores"] // self.device.threads) or 1
            shared = replace(self, shared=True)
            lane = iter([partial(run, shared, index) for index in left])  # its next() is atomic
            with device_lock(self.device.name, self.device.connection):
                run_queues([lane] * most)
        for index in range(len(jobs)):
            if index not in outcomes:
                run(self, index)
        return [outcomes[index] for index in range(len(jobs))]

    def _has(self, job: Untimed, evaluation: Evaluation) -> bool:
        _, key = self._asked(job.model, evaluation, job.limit, options=job.options)
        return self.store.get(key) is not None

    def _asked(
        self,
        model: Model,
        evaluation: Evaluation,
        limit: int | None,
        baseline: Model | None = None,
        latency: Timing | None = None,
        options: Mapping[str, Any] | None = None,
        batch: int = 1,
        layers: Sequence[int] = (),
    ) -> tuple[Job, str]:
        """A job without file names, and its key in the store; the arguments are those of `run`."""
        timing = None if self.device.emulated else latency
        custom = model.code if model.code is not None and model.code.is_file() else None
        options = dict(options or {}) | ({"code": custom.stem} if custom else {})
        runtime = self.device.runtimes[model.format]
        request = self._job(
            runtime, options=options, outputs=OUTPUTS, batch=batch, latency=timing, layers=layers
        )
        key = digest_of(
            ({"code": file_digest(custom)} if custom else {})
            | {
                "request": request,
                "agent": file_digest(self.agent),
                "device": [self.device.name, self._where(), stable_fields(self.probe)],
                "model": [model_digest(model), model.format],
                "baseline": model_digest(baseline) if baseline is not None and latency else "",
                "data": evaluation.key(model.inputs, limit),
            }
        )
        return request, key

    def _where(self) -> str:
        """The machine that the device is attached to."""
        return self.remote.where if self.remote is not None else platform.node()

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
            job["model"] = put_model(link, model, "model")
            result, failure = execute(link, self.device, job, folder)
        if failure is not None:
            raise DeviceError(f"{model.path.name} on {self.device.name}: {failure['error']}")
        inputs = result["inputs"] if result is not None else None
        if not inputs:
            raise DeviceError(
                f"{model.path.name} on {self.device.name}: the runtime does not report the model's inputs",
                fix="give the shape of every input: --shape 1,3,32,32",
            )
        return tuple(TensorSpec.model_validate(spec) for spec in inputs)
