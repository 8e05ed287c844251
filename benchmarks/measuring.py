"""Quality of edgeopt's measurements: the related figures of the README and the guide.

    python benchmarks/measuring.py                 # all parts
    python benchmarks/measuring.py null repeat     # some

Parts: ``null`` (overhead of the harness), ``peer`` (p50 compared with litert-benchmark of the
ai-edge-litert wheel), ``repeat`` (one file measured twice in one run, on a quiet and on a busy machine),
``emulated`` (1,000 samples on arm64-emulated, which must be set up), ``ssh`` (overhead of the connection;
EDGEOPT_SSH_DEVICE names the device, for example a device file for this machine). Real models and data are
read from EDGEOPT_DATA.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import Device, load_device
from edgeopt.errors import CannotRunError
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.formats.source import inspect
from edgeopt.model import Model, Preprocessing
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.measuring.outcome import Outcome
from edgeopt.run.measuring.readings import conditions, latency
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.store import Store

MODELS = {"KWS int8": "kws_reference_int8.tflite", "ResNet8 int8": "resnet8_reference_int8.tflite"}
ROUNDS = 7
PEER = """
import ai_edge_litert.tools.benchmark_litert_model as tool
tool.round = lambda value, digits: value  # it rounds to 0.01 ms, a tenth of the latency of a small model
tool.main()
"""
SPIN = "while True: pass"


class Session:
    """A device and a folder for its jobs; no earlier results are reused."""

    def __init__(self, device: Device, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.bench = Bench(device, build_agent(folder / "agent.pyz"), Store(self.folder / "store")).open()
        if self.bench.failure:
            raise CannotRunError(self.bench.failure)

    def model(self, path: Path) -> Model:
        """A model file with its inputs, from the file or from this device's runtime."""
        model = inspect(path).model
        return model.model_copy(update={"inputs": model.inputs or self.bench.describe(model)})

    def run(self, model: Model, data: Path | None = None, **options: object) -> Outcome:
        """Run a file without cached results; ``options`` are those of ``Bench.run``."""
        self.bench.store = Store(Path(tempfile.mkdtemp(dir=self.folder)))
        dataset = None if data is None else Npz(path=data, label=None)
        evaluation = Evaluation(dataset, Preprocessing(), Path(tempfile.mkdtemp(dir=self.folder)))
        if options.pop("twice", False):
            options["baseline"] = model
        outcome = self.bench.run(model, evaluation, **options)  # type: ignore[arg-type]
        if outcome.error:
            raise CannotRunError(outcome.error)
        return outcome


def real(name: str) -> Path:
    """Path of a real model or data file."""
    root = os.environ.get("EDGEOPT_DATA")
    if not root:
        raise CannotRunError("EDGEOPT_DATA is not set: skipped")
    return Path(root) / name


def protocol(seconds: float) -> dict[str, float]:
    return {"min_runs": 50, "min_seconds": seconds, "max_seconds": 30.0}


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Busy loops on this many cores."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(cores)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def nothing(device: str, folder: Path) -> tuple[Model, Session, dict[str, object]]:
    """KWS, a session on a device with the null runtime, and the specs that the null runtime imitates."""
    here = Session(load_device("host"), folder)
    model = here.model(real("mlperf-tiny/kws_reference_int8.tflite"))
    result = here.run(model).result
    assert result is not None
    there = load_device(device, [Path("devices")]).model_copy(update={"runtimes": {"tflite": "null"}})
    return model, Session(there, folder), {"inputs": result["inputs"], "outputs": result["outputs"]}


def null(folder: Path) -> None:
    model, session, specs = nothing("host", folder)
    outcome = session.run(model, real("kws/evaluation400.npz"), latency=protocol(1.0), options=specs)
    (spell,) = outcome.intervals
    inside = float(np.median(outcome.times["latency"])) * 1e6
    whole = spell["seconds"] / len(outcome.times["latency"]) * 1e6
    print("a call of the null runtime, with the inputs and outputs of KWS int8       µs   goal")
    print(f"inside the clock, included in every latency                         {inside:8.2f}   5")
    print(f"with fetching the sample, quantizing and dequantizing: outside it   {whole:8.2f}")


def peer(folder: Path) -> None:
    session = Session(load_device("host"), folder)
    peer_result = folder / "peer.json"
    print(
        f"p50 ms, median of {ROUNDS} turns, 1 thread   edgeopt   litert-benchmark    ratio   goal 0.95 … 1.05"
    )
    for name, file in MODELS.items():
        path = real(f"mlperf-tiny/{file}")
        ours, theirs = [], []
        for _ in range(ROUNDS):
            outcome = session.run(session.model(path), latency=protocol(1.0))
            ours.append(float(np.median(outcome.times["latency"])) * 1e3)
            runs = str(len(outcome.times["latency"]))
            command = [sys.executable, "-c", PEER, "--model", str(path), "--num_threads", "1"]
            command += ["--num_runs", runs, "--warmup_runs", "200", "--result_json", str(peer_result)]
            subprocess.run(command, check=True, capture_output=True)
            theirs.append(float(json.loads(peer_result.read_text())["latency"]["median_ms"]))
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        middle = statistics.median(ours), statistics.median(theirs)
        print(f"{name:<38} {middle[0]:9.4f} {middle[1]:18.4f} {ratio:8.3f}")
        turns = " ".join(f"{one / other:.3f}" for one, other in zip(ours, theirs, strict=True))
        print(f"  ratio of each turn: {turns}")


def repeat(folder: Path) -> None:
    session = Session(load_device("host"), folder)
    print("one file twice in one run                 p50 ratio   interval         goal 0.97 … 1.03")
    for cores in (0, 1):
        for name, file in MODELS.items():
            with busy(cores):
                model = session.model(real(f"mlperf-tiny/{file}"))
                outcome = session.run(model, latency=protocol(2.0), twice=True)
            ratio = latency(outcome)["latency_ratio"]
            low, high = ratio.ci95 or (float("nan"), float("nan"))
            title = f"{name}, {cores or 'no'} busy core"
            notes = "; ".join(conditions(outcome.intervals))
            print(f"{title:<38} {ratio.value:12.4f}   {low:.4f} … {high:.4f}   {notes}")


def emulated(folder: Path) -> None:
    with np.load(real("kws/evaluation400.npz")) as archive:
        x, y = archive["x"], archive["y"]
    rows = np.arange(1000) % len(x)
    np.savez(folder / "thousand.npz", x=x[rows])
    session = Session(load_device("arm64-emulated"), folder)
    print("1,000 KWS samples on arm64-emulated         s   top-1   goal 60 s")
    start = time.perf_counter()
    model = session.model(real("mlperf-tiny/kws_reference_int8.tflite"))
    outcome = session.run(model, folder / "thousand.npz")
    seconds = time.perf_counter() - start
    right = float((outcome.outputs[0].reshape(1000, -1).argmax(axis=1) == y[rows]).mean())
    print(f"{outcome.runtime:<38} {seconds:6.1f} {right:7.4f}")


def ssh(folder: Path) -> None:
    name = os.environ.get("EDGEOPT_SSH_DEVICE")
    if not name:
        raise CannotRunError("EDGEOPT_SSH_DEVICE is not set: skipped")
    taken: dict[str, list[float]] = {}
    for device in ("host", name):
        model, session, specs = nothing(device, folder)
        for _ in range(3):
            start = time.perf_counter()
            session.run(model, real("kws/evaluation400.npz"), options=specs)
            taken.setdefault(device, []).append(time.perf_counter() - start)
    here, there = (statistics.median(seconds) for seconds in taken.values())
    print("a job of 400 KWS samples without a model   host s   over ssh s   added s   goal 2")
    print(f"{name:<40} {here:8.2f} {there:12.2f} {there - here:9.2f}")


PARTS = {part.__name__: part for part in (null, peer, repeat, emulated, ssh)}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for part in sys.argv[1:] or PARTS:
            print(f"\n{part}")
            try:
                PARTS[part](Path(scratch))
            except CannotRunError as error:
                print(error)
