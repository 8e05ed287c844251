"""Runs jobs on one device: sends the agent, a model, its inputs and a request, and fetches the results.

Results are cached: the same model, data, runtime and device are not measured twice.
"""

import json
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from edgeopt.config import absent
from edgeopt.config.chatter import without_chatter
from edgeopt.config.files import file_digest
from edgeopt.config.references import import_path
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import Device, connection_of
from edgeopt.devices.locks import device_lock
from edgeopt.errors import DeviceError, UsageError, install
from edgeopt.evaluation.samples import collect, random_inputs
from edgeopt.formats.known import model_digest, placed_files
from edgeopt.model import InputPreprocessing, Model, Preprocessing, TensorSpec
from edgeopt.plugin import ConnectionCutError, Dataset, Labels, Link, digest_of
from edgeopt.recipe.document import Latency
from edgeopt.run.outcome import OUTPUTS, RESULT, Outcome, files_of_result, read_outcome
from edgeopt.run.protocol import (
    PROTOCOL,
    Job,
    JobFailure,
    JobResult,
    Probe,
    Timing,
    read_probe,
    read_response,
)
from edgeopt.run.store import Store

JOB_SECONDS = 1800.0
RANDOM_SAMPLES = 64
VOLATILE_FIELDS = ("load", "memory_available_bytes", "temperature_c")
"""Fields of a probe that do not identify the device."""


class Evaluation:
    """The evaluation samples, preprocessed once per input signature and stored as .npy files in ``folder``.

    Without a dataset, seeded random inputs are used: outputs can be compared, but not accuracy.
    """

    def __init__(
        self, dataset: Dataset | None, preprocessing: Preprocessing | InputPreprocessing, folder: Path
    ) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.folder = folder
        self.digest = dataset.digest() if dataset is not None else "random"
        self._labels: Labels | None = None
        self._files: dict[str, tuple[tuple[Path, ...], int]] = {}
        self._lock = threading.RLock()
        """Devices that are measured in parallel ask for the same samples."""

    def key(self, specs: tuple[TensorSpec, ...], limit: int | None) -> str:
        """Digest that identifies the inputs for ``specs``, without computing them."""
        signature = [spec.model_dump(mode="json", exclude={"name"}) for spec in specs]
        return digest_of([self.digest, self.preprocessing.key(specs), signature, limit])

    def files(self, specs: tuple[TensorSpec, ...], limit: int | None) -> tuple[tuple[Path, ...], int]:
        """One .npy file per input, and the number of samples, at most ``limit``, each of as many rows."""
        key = self.key(specs, limit)
        with self._lock:
            if key not in self._files:
                self._files[key] = self._written(key, specs, limit)
            return self._files[key]

    def _written(
        self, key: str, specs: tuple[TensorSpec, ...], limit: int | None
    ) -> tuple[tuple[Path, ...], int]:
        if self.dataset is None:
            arrays = random_inputs(specs, RANDOM_SAMPLES)
        else:
            arrays, labels = collect(self.dataset, self.preprocessing, specs, limit)
            if limit is None:
                self._labels = labels
        paths = tuple(self.folder / f"{key[:16]}-{index}.npy" for index in range(len(arrays)))
        for path, array, spec in zip(paths, arrays, specs, strict=True):
            # The agent cuts inputs along their first axis: a state of two layers is two rows per sample.
            rows = array.reshape(-1, *array.shape[2:]) if 0 < len(spec.shape) < array.ndim else array
            np.save(path, rows, allow_pickle=False)
        return paths, len(arrays[0])

    def labels(self, specs: tuple[TensorSpec, ...]) -> Labels | None:
        """Labels of all samples, None if the dataset has none."""
        with self._lock:
            if self._labels is None and self.dataset is not None:
                _, self._labels = collect(self.dataset, self.preprocessing, specs, None)
            return self._labels


def timing_of(part: Latency) -> Timing:
    """The recipe's latency settings as a protocol message."""
    return {
        "min_runs": part.min_runs,
        "min_seconds": part.min_seconds,
        "max_seconds": part.max_seconds,
        "repeats": part.repeats,
    }


P = ParamSpec("P")
T = TypeVar("T")


def retried(job: Callable[P, T]) -> Callable[P, T]:
    """Retry a job once if the connection is cut."""

    @wraps(job)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return job(*args, **kwargs)
        except ConnectionCutError:
            pass
        try:
            return job(*args, **kwargs)
        except ConnectionCutError as error:
            raise DeviceError(f"{error.message}, and again after a retry", fix=error.fix) from error

    return wrapper


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
                f"{_last_line(process.stderr)}"
            ) from error
        return read_response((folder / RESULT).read_bytes(), self.device.name)


@contextmanager
def connect(device: Device, *, shared: bool = False) -> Iterator[Link]:
    """Open a connection to a device and lock the device against other runs on this machine.

    Args:
        device: the device.
        shared: do not lock it: for jobs in which nothing is timed.

    Raises:
        DeviceError: the device is unreachable.
    """
    lock = nullcontext() if shared else device_lock(device.name, device.connection)
    with lock, connection_of(device).open() as link:
        yield link


@retried
def fetch_probe(device: Device, agent: Path, *, shared: bool = False) -> Probe:
    """Run the agent's probe on a device: processor, memory, system, runtimes and their versions.

    Raises:
        DeviceError: the device is unreachable, or its response is malformed.
    """
    with connect(device, shared=shared) as link:
        link.put(agent, "agent.pyz")
        process = link.python(["agent.pyz", "probe"], timeout=60)
    if process.returncode != 0:
        raise DeviceError(f"device {device.name}: the agent failed: {_last_line(process.stderr)}")
    return read_probe(process.stdout, device.name)


def check_requirements(device: Device, probe: Probe) -> None:
    """Check that a device has what jobs need: numpy, and the hardware that its file requires (``needs``).

    Raises:
        DeviceError: it is missing.
    """
    if probe["numpy"] is None:
        own = f"edgeopt devices setup {device.name}" if device.setup.python else "install it on the device"
        raise DeviceError(
            f"the Python {probe['python']} of device {device.name} has no numpy: nothing is measured there",
            fix=own if absent.installed() else install("numerics"),
        )
    if "gpu" in device.needs and not probe["gpus"]:
        raise DeviceError(
            f"device {device.name} has no NVIDIA GPU: nvidia-smi is not on its PATH, or lists none",
            fix="install the NVIDIA driver on it, or set its connection to a machine with a GPU",
        )


def stable_fields(probe: Probe | None) -> dict[str, Any]:
    """The fields of a probe that identify the device: those that do not change over time."""
    return {name: value for name, value in (probe or {}).items() if name not in VOLATILE_FIELDS}


def probe_device(device: Device, folder: Path) -> Probe:
    """Build the agent in ``folder`` and run its probe on a device."""
    return fetch_probe(device, build_agent(folder / "agent.pyz"))


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


def _last_line(text: str) -> str:
    lines = without_chatter(text.splitlines())
    return lines[-1][:300] if lines else "no message"
