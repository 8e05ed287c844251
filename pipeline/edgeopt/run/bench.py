"""One device that jobs are sent to: a job is a model file, inputs and a request; the agent answers.

What was measured on this machine with this very file, data and runtime is not measured again.
"""

import json
import platform
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from edgeopt.config import registry
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import Device
from edgeopt.devices.locks import device_lock
from edgeopt.errors import DeviceError
from edgeopt.evaluation.samples import collect, dequantize, random_inputs
from edgeopt.model import Array, Model, Preprocessing, TensorSpec, content_digest, file_digest
from edgeopt.plugin import Connection, ConnectionCutError, Dataset, Link, digest_of
from edgeopt.run.store import Store

JOB_SECONDS = 1800.0
RANDOM_SAMPLES = 64
CHANGING = ("load", "memory_available_bytes", "temperature_c")
"""Findings of a probe that say nothing about which device it is."""
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile)
"""What reading the files of a device may raise that is broken, or does not mean well."""


class Outcome(NamedTuple):
    """What the agent answered to one job; ``error`` says why there are no outputs."""

    runtime: str
    error: str = ""
    outputs: tuple[Array, ...] = ()
    info: Mapping[str, Any] = {}
    times: Mapping[str, NDArray[np.float64]] = {}
    cached: bool = False
    compiled: Path | None = None
    layers: tuple[Array, ...] = ()
    """What every operator gave for the samples asked for; ``info["layers"]`` describes them."""
    unreachable: bool = False


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
    probe: dict[str, Any] = field(default_factory=dict)
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
        latency: Mapping[str, float] | None = None,
        options: Mapping[str, Any] | None = None,
        batch: int = 1,
        layers: Sequence[int] = (),
    ) -> Outcome:
        """Run one model over the evaluation samples; a failure comes back as an outcome with ``error``."""
        runtime = self.device.runtimes[model.format]
        if self.failure:
            return Outcome(runtime, self.failure, unreachable=True)
        request = {
            "protocol": 1,
            "runtime": runtime,
            "threads": self.device.threads,
            "options": self.device.options.get(runtime, {}) | dict(options or {}),
            "batch": batch,
            "latency": None if self.device.emulated else latency,
        }
        if layers:
            request["layers"] = list(layers)
        key = digest_of(
            {
                "request": request,
                "agent": file_digest(self.agent),
                "device": [self.device.name, platform.node(), lasting(self.probe)],
                "model": [content_digest(model.path), model.format],
                "baseline": content_digest(baseline.path) if baseline is not None and latency else "",
                "data": evaluation.key(model.inputs, limit),
            }
        )
        entry = self.store.get(key)
        if entry is not None:
            return _outcome(runtime, entry.folder, model, cached=True)
        try:
            with self.store.scratch() as folder:
                self._send(request, model, baseline if latency else None, evaluation, limit, folder)
                answer = json.loads((folder / "result.json").read_text("utf-8"))
                if not answer["ok"]:
                    return Outcome(runtime, answer["error"])
                self._readable(runtime, folder, model)
                entry = self.store.put(key, folder, {"measurement": self.device.name})
        except DeviceError as error:
            return Outcome(runtime, str(error))
        return _outcome(runtime, entry.folder, model, cached=False)

    def _readable(self, runtime: str, folder: Path, model: Model) -> None:
        try:
            _outcome(runtime, folder, model, cached=False)
        except UNREADABLE as error:
            raise DeviceError(f"device {self.device.name} answered rubbish: {error}") from error

    @retried
    def describe(self, model: Model) -> tuple[TensorSpec, ...]:
        """What a model takes, told by the runtime that loads it.

        Raises:
            DeviceError: the runtime refuses the model, or its format does not tell.
        """
        request = {
            "protocol": 1,
            "runtime": self.device.runtimes[model.format],
            "threads": self.device.threads,
            "options": self.device.options.get(self.device.runtimes[model.format], {}),
            "inputs": None,
        }
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as name, connect(self.device) as link:
            folder = Path(name)
            link.put(self.agent, "agent.pyz")
            answer = self._answer(link, request | {"model": _put(link, model, "model")}, folder)
        if not answer["ok"]:
            raise DeviceError(f"{model.path.name} on {self.device.name}: {answer['error']}")
        if not answer.get("inputs"):
            raise DeviceError(
                f"{model.path.name} on {self.device.name}: the runtime does not tell what the model takes",
                fix="give the shape of every input: --shape 1,3,32,32",
            )
        return tuple(TensorSpec.model_validate(spec) for spec in answer["inputs"])

    @retried
    def _send(
        self,
        request: dict[str, Any],
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
            job = request | {"model": _put(link, model, "model"), "inputs": names, "outputs": "outputs.npz"}
            job["python_path"] = [str(model.code)] if model.code is not None else []
            job["baseline"] = _put(link, baseline, "baseline") if baseline is not None else None
            answer = self._answer(link, job, folder)
            if answer["ok"]:
                for name in _results(answer, timed=bool(job["latency"])):
                    link.get(name, folder / name)

    def _answer(self, link: Link, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Have a job carried out whose files are there already; leaves ``result.json`` in ``folder``."""
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        link.put(folder / "job.json", "job.json")
        answer = link.python(["agent.pyz", "run", "job.json"], timeout=JOB_SECONDS)
        try:
            link.get("result.json", folder / "result.json")
            found = json.loads((folder / "result.json").read_text("utf-8"))
        except ConnectionCutError:
            raise
        except (DeviceError, ValueError) as error:
            died = (
                f"died with signal {-answer.returncode}"
                if answer.returncode < 0
                else f"exit code {answer.returncode}"
            )
            raise DeviceError(
                f"device {self.device.name}: the agent ended without a result ({died}): "
                f"{_last_line(answer.stderr)}"
            ) from error
        known = isinstance(found, dict) and isinstance(found.get("ok"), bool)
        if not known or not (found["ok"] or isinstance(found.get("error"), str)):
            raise DeviceError(f"device {self.device.name} answered rubbish: {str(found)[:100]}")
        return cast("dict[str, Any]", found)


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
    return cast(Connection, registry.find("connections", uses).model_validate(options))


@retried
def ask(device: Device, agent: Path) -> dict[str, Any]:
    """What the agent finds on a device: processor, memory, system, runtimes and their versions.

    Raises:
        DeviceError: the device cannot be reached, or answers rubbish.
    """
    with connect(device) as link:
        link.put(agent, "agent.pyz")
        answer = link.python(["agent.pyz", "probe"], timeout=60)
    if answer.returncode != 0:
        raise DeviceError(f"device {device.name}: the agent failed: {_last_line(answer.stderr)}")
    try:
        found = json.loads(answer.stdout)
    except ValueError as error:
        raise DeviceError(f"device {device.name} answered what is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DeviceError(f"device {device.name} answered rubbish: {str(found)[:100]}")
    return cast("dict[str, Any]", found)


def require(device: Device, probe: Mapping[str, Any]) -> None:
    """Hold what a device needs against what was found there.

    Raises:
        DeviceError: hardware is missing.
    """
    if "gpu" in device.needs and not probe.get("gpus"):
        raise DeviceError(
            f"device {device.name} has no NVIDIA GPU: nvidia-smi is not on its PATH, or lists none",
            fix="install the NVIDIA driver there, or give its connection a machine that has a GPU",
        )


def lasting(probe: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a device: its probe without what changes from minute to minute."""
    return {name: value for name, value in probe.items() if name not in CHANGING}


def probe_device(device: Device, folder: Path) -> dict[str, Any]:
    """Connect to a device and ask; ``folder`` is for scratch."""
    return ask(device, build_agent(folder / "agent.pyz"))


def _put(link: Link, model: Model, stem: str) -> str:
    """Send a model's file, or every file of its folder; returns its remote name."""
    name = stem + model.path.suffix
    link.put(model.path, name)
    return name


def _outcome(runtime: str, folder: Path, model: Model, *, cached: bool) -> Outcome:
    info = json.loads((folder / "result.json").read_text("utf-8"))
    outputs = _arrays(folder / "outputs.npz", "output")
    if len(outputs) == len(model.outputs):
        # A file that does not tell what its integers stand for, as ONNX, gives them as they are.
        outputs = tuple(dequantize(*pair) for pair in zip(outputs, model.outputs, strict=True))
    compiled = folder / "compiled.bin"
    times: dict[str, NDArray[np.float64]] = {}
    if (folder / "times.npz").exists():
        with np.load(folder / "times.npz", allow_pickle=False) as archive:
            times = dict(archive)
    return Outcome(
        f"{runtime} {info['runtime'].get('version', '')}".strip(),
        "",
        outputs,
        info,
        times,
        cached,
        compiled if compiled.exists() else None,
        _arrays(folder / "layers.npz", "layer"),
    )


def _arrays(path: Path, stem: str) -> tuple[Array, ...]:
    if not path.exists():
        return ()
    with np.load(path, allow_pickle=False) as archive:
        return tuple(archive[f"{stem}_{index}"] for index in range(len(archive.files)))


def _results(answer: Mapping[str, Any], *, timed: bool) -> list[str]:
    """The files that a job left behind; the device's answer never names a path."""
    if not answer.get("executed", True):
        return ["compiled.bin"] if answer.get("compiled") else []
    names = ["outputs.npz", "times.npz"] if timed else ["outputs.npz"]
    return [*names, "layers.npz"] if answer.get("layers") else names


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
