"""One device that jobs are sent to: a job is a model file, inputs and a request; the agent answers.

What was measured on this machine with this very file, data and runtime is not measured again.
"""

import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from edgeopt.config import registry
from edgeopt.config.files import file_digest
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import Device
from edgeopt.devices.locks import device_lock
from edgeopt.errors import DeviceError
from edgeopt.evaluation.samples import collect, random_inputs
from edgeopt.formats.known import model_digest, model_files
from edgeopt.model import Array, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Connection, ConnectionCutError, Dataset, Link, digest_of
from edgeopt.recipe.document import Latency
from edgeopt.run.outcome import OUTPUTS, RESULT, Outcome, files_of_result, read_outcome
from edgeopt.run.protocol import (
    PROTOCOL,
    Job,
    JobFailure,
    JobResult,
    Probe,
    Timing,
    read_answer,
    read_probe,
)
from edgeopt.run.store import Store

HOST = "host"
"""The device that is this machine: the source model and the steps on the way are run there."""
JOB_SECONDS = 1800.0
RANDOM_SAMPLES = 64
CHANGING = ("load", "memory_available_bytes", "temperature_c")
"""Findings of a probe that say nothing about which device it is."""


class Evaluation:
    """The samples every model is judged on, preprocessed once per input form.

    Without a dataset, seeded random inputs stand in: enough to compare outputs, not accuracy.
    """

    def __init__(self, dataset: Dataset | None, preprocessing: Preprocessing, folder: Path) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.folder = folder
        self.digest = dataset.digest() if dataset is not None else "random"
        self._labels: Array | None = None
        self._files: dict[str, tuple[tuple[Path, ...], int]] = {}

    def key(self, specs: tuple[TensorSpec, ...], limit: int | None) -> str:
        """What identifies the inputs made for ``specs``, known without making them."""
        forms = [spec.model_dump(mode="json", exclude={"name"}) for spec in specs]
        return digest_of([self.digest, self.preprocessing.model_dump(mode="json"), forms, limit])

    def files(self, specs: tuple[TensorSpec, ...], limit: int | None) -> tuple[tuple[Path, ...], int]:
        """One .npy file per input, and the number of samples."""
        key = self.key(specs, limit)
        if key not in self._files:
            if self.dataset is None:
                arrays = random_inputs(specs, RANDOM_SAMPLES)
            else:
                arrays, labels = collect(self.dataset, self.preprocessing, specs, limit)
                if limit is None:
                    self._labels = labels
            paths = tuple(self.folder / f"{key[:16]}-{index}.npy" for index in range(len(arrays)))
            for path, array in zip(paths, arrays, strict=True):
                np.save(path, array, allow_pickle=False)
            self._files[key] = paths, len(arrays[0])
        return self._files[key]

    def labels(self, specs: tuple[TensorSpec, ...]) -> Array | None:
        """Labels of all samples, None where the data has none."""
        if self._labels is None and self.dataset is not None:
            _, self._labels = collect(self.dataset, self.preprocessing, specs, None)
        return self._labels


def timing_of(part: Latency) -> Timing:
    """How long to measure, as the agent is asked."""
    return {
        "min_runs": part.min_runs,
        "min_seconds": part.min_seconds,
        "max_seconds": part.max_seconds,
        "repeats": part.repeats,
    }


P = ParamSpec("P")
T = TypeVar("T")


def retried(job: Callable[P, T]) -> Callable[P, T]:
    """A job that is begun anew, once, when the connection is cut under way."""

    @wraps(job)
    def twice(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return job(*args, **kwargs)
        except ConnectionCutError:
            pass
        try:
            return job(*args, **kwargs)
        except ConnectionCutError as error:
            raise DeviceError(f"{error.message}, and again when it was retried", fix=error.fix) from error

    return twice


@dataclass
class Bench:
    """A device that jobs are sent to, one after the other."""

    device: Device
    agent: Path
    store: Store
    probe: Probe | None = None
    failure: str = ""

    def open(self) -> "Bench":
        """Ask the device what it is; a device that does not answer keeps the reason in ``failure``."""
        try:
            self.probe = ask(self.device, self.agent)
            require(self.device, self.probe)
        except DeviceError as error:
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
        """Run one model over the evaluation samples; a failure comes back as an outcome with ``error``."""
        runtime = self.device.runtimes[model.format]
        if self.failure:
            return Outcome(runtime, self.failure, unreachable=True)
        timing = None if self.device.emulated else latency
        request = self._job(
            runtime, options=options or {}, outputs=OUTPUTS, batch=batch, latency=timing, layers=layers
        )
        key = digest_of(
            {
                "request": request,
                "agent": file_digest(self.agent),
                "device": [self.device.name, platform.node(), lasting(self.probe)],
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
        """A job without the names of its files, which are known when they are sent."""
        return {
            "protocol": PROTOCOL,
            "runtime": runtime,
            "threads": self.device.threads,
            "options": self.device.options.get(runtime, {}) | dict(options),
            "model": "",
            "inputs": None,
            "outputs": outputs,
            "batch": batch,
            "latency": latency,
            "baseline": None,
            "python_path": [],
            "layers": list(layers),
        }

    @retried
    def describe(self, model: Model) -> tuple[TensorSpec, ...]:
        """What a model takes, told by the runtime that loads it.

        Raises:
            DeviceError: the runtime refuses the model, or its format does not tell.
        """
        job = self._job(self.device.runtimes[model.format])
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as name, connect(self.device) as link:
            folder = Path(name)
            link.put(self.agent, "agent.pyz")
            job["model"] = _put(link, model, "model")
            result, failure = self._answer(link, job, folder)
        if failure is not None:
            raise DeviceError(f"{model.path.name} on {self.device.name}: {failure['error']}")
        inputs = result["inputs"] if result is not None else None
        if not inputs:
            raise DeviceError(
                f"{model.path.name} on {self.device.name}: the runtime does not tell what the model takes",
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
        inputs, _ = evaluation.files(model.inputs, limit)
        names = [f"input{index}.npy" for index in range(len(inputs))]
        with connect(self.device) as link:
            link.put(self.agent, "agent.pyz")
            for path, name in zip(inputs, names, strict=True):
                link.put(path, name)
            job: Job = {
                **request,
                "model": _put(link, model, "model"),
                "inputs": names,
                "python_path": [str(model.code)] if model.code is not None else [],
                "baseline": _put(link, baseline, "baseline") if baseline is not None else None,
            }
            result, _ = self._answer(link, job, folder)
            if result is not None:
                for name in files_of_result(result, timed=job["latency"] is not None):
                    link.get(name, folder / name)

    def _answer(self, link: Link, job: Job, folder: Path) -> tuple[JobResult | None, JobFailure | None]:
        """Have a job carried out whose files are there already; leaves ``result.json`` in ``folder``."""
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        link.put(folder / "job.json", "job.json")
        answer = link.python(["agent.pyz", "run", "job.json"], timeout=JOB_SECONDS)
        try:
            link.get(RESULT, folder / RESULT)
        except ConnectionCutError:
            raise
        except DeviceError as error:
            died = (
                f"died with signal {-answer.returncode}"
                if answer.returncode < 0
                else f"exit code {answer.returncode}"
            )
            raise DeviceError(
                f"device {self.device.name}: the agent ended without a result ({died}): "
                f"{_last_line(answer.stderr)}"
            ) from error
        return read_answer((folder / RESULT).read_bytes(), self.device.name)


@contextmanager
def connect(device: Device) -> Iterator[Link]:
    """An open connection to a device that no other run of this machine uses meanwhile.

    Raises:
        DeviceError: it cannot be reached.
    """
    with device_lock(device.name, device.connection), connection_of(device).open() as link:
        yield link


def connection_of(device: Device) -> Connection:
    """The way to a device, not opened yet."""
    entry = device.connection
    uses, options = (entry, {}) if isinstance(entry, str) else (entry["uses"], entry.get("with", {}))
    return registry.find(Connection, uses).model_validate(options)


@retried
def ask(device: Device, agent: Path) -> Probe:
    """What the agent finds on a device: processor, memory, system, runtimes and their versions.

    Raises:
        DeviceError: the device cannot be reached, or its response is malformed.
    """
    with connect(device) as link:
        link.put(agent, "agent.pyz")
        answer = link.python(["agent.pyz", "probe"], timeout=60)
    if answer.returncode != 0:
        raise DeviceError(f"device {device.name}: the agent failed: {_last_line(answer.stderr)}")
    return read_probe(answer.stdout, device.name)


def require(device: Device, probe: Probe) -> None:
    """Hold what a device needs against what was found there.

    Raises:
        DeviceError: hardware is missing.
    """
    if "gpu" in device.needs and not probe["gpus"]:
        raise DeviceError(
            f"device {device.name} has no NVIDIA GPU: nvidia-smi is not on its PATH, or lists none",
            fix="install the NVIDIA driver there, or give its connection a machine that has a GPU",
        )


def lasting(probe: Probe | None) -> dict[str, Any]:
    """What identifies a device: its probe without what changes from minute to minute."""
    return {name: value for name, value in (probe or {}).items() if name not in CHANGING}


def probe_device(device: Device, folder: Path) -> Probe:
    """Connect to a device and ask; ``folder`` is for scratch."""
    return ask(device, build_agent(folder / "agent.pyz"))


def _put(link: Link, model: Model, stem: str) -> str:
    """Send all files of a model, called after ``stem``; returns the remote name of the main one."""
    name = stem + model.path.suffix
    if model.path.is_dir():
        link.put(model.path, name)
        return name
    for file in model_files(model):
        link.put(file, stem + file.name.removeprefix(model.path.stem))
    return name


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
