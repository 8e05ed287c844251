"""Measures one finished file on one device, whoever made it."""

import datetime
import importlib.metadata
import shlex
import sys
import tempfile
import time
from pathlib import Path

from edgeopt.config import registry
from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device
from edgeopt.devices.lint import lint_artifact, lint_measured, summary
from edgeopt.errors import DeviceError, UsageError
from edgeopt.evaluation.measurements import conditions, latency, measurement, of_the_device, sizes
from edgeopt.formats.source import inspect
from edgeopt.model import Model, Preprocessing, TensorSpec, file_digest
from edgeopt.plugin import Dataset, Metric
from edgeopt.recipe.document import Latency
from edgeopt.results import EMULATED, Artifact, Report, Result, Run
from edgeopt.run.bench import Bench, Evaluation
from edgeopt.run.store import Store

UNTOLD = ("torchscript", "torchscript_module")
"""Formats that do not hold the shapes of their inputs."""


def profile(
    file: str | Path,
    *,
    device: str = "host",
    device_folders: tuple[Path, ...] = (),
    dataset: Dataset | None = None,
    preprocessing: Preprocessing | None = None,
    metrics: tuple[Metric, ...] = (),
    inputs: tuple[TensorSpec, ...] = (),
    protocol: Latency | None = None,
    trust: bool = False,
) -> Report:
    """Latency, memory, size and, with labelled data, accuracy of a model file on a device.

    Args:
        file: a .tflite, .onnx, .ptl or .pte file, or any source model.
        device: the name of a device, or a device file.
        dataset: samples to run; without one, seeded random inputs are used.
        preprocessing: from raw sample to model input; default none.
        metrics: judged against the labels of the dataset.
        inputs: for formats that do not tell what they take, such as TorchScript.
        trust: allow Lambda layers and pickles, which run code from the file.

    Raises:
        UsageError: the file is not a model, or the device has no runtime for it.
        DeviceError: the device cannot be reached or refuses the file.
    """
    started, clock = datetime.datetime.now().astimezone(), time.monotonic()
    path = Path(file)
    target = load_device(device, device_folders)
    source = inspect(path, trust=trust)
    model = source.model.model_copy(update={"inputs": inputs or source.model.inputs})
    if model.format not in target.runtimes:
        raise UsageError(
            f"device {device} has no runtime for {model.format}",
            fix=f"it runs {', '.join(target.runtimes)}",
        )
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        folder = Path(name)
        bench = Bench(target, build_agent(folder / "agent.pyz"), Store(folder / "store")).open()
        if bench.failure:
            raise DeviceError(bench.failure)
        if not model.inputs and model.format in UNTOLD:
            raise UsageError(
                f"{path} does not tell what it takes", fix="give the shape of every input: --shape 1,3,32,32"
            )
        if not model.inputs:
            model = model.model_copy(update={"inputs": bench.describe(model)})
        prepared = preprocessing or Preprocessing()
        if dataset is not None:
            model, prepared = fit_layout(model, prepared, dataset)
        evaluation = Evaluation(dataset, prepared, folder)
        outcome = bench.run(
            model,
            evaluation,
            latency=(protocol or Latency()).model_dump(),
            options={"trust": trust} if trust else {},
        )
        if outcome.error:
            raise DeviceError(f"{path.name} on {device}: {outcome.error}")
        values = sizes(path) if path.is_file() else {}
        findings = summary(
            [
                *lint_artifact(path, target, model.format),
                *lint_measured(outcome.info.get("measurements") or {}, target),
            ]
        )
        labels = evaluation.labels(model.inputs) if dataset is not None else None
        executed = bool(outcome.outputs)  # a compiler gives figures, and nothing to judge
        for metric in metrics if executed else ():
            if metric.against != "labels":
                raise UsageError(
                    f"{registry.plugin_name(metric)} compares with a source model: use edgeopt optimize"
                )
            if labels is None:
                raise UsageError(
                    f"{registry.plugin_name(metric)} needs labelled data", fix="give it with --data"
                )
            values[registry.plugin_name(metric)] = measurement(
                metric.score(outcome.outputs[0], labels), metric.unit
            )
        values |= latency(outcome.info, outcome.times)
        if target.emulated:
            values = of_the_device(values)
    artifact = (
        Artifact(path=str(path), digest=file_digest(path), size_bytes=path.stat().st_size)
        if path.is_file()
        else None
    )
    result = Result(
        variant=path.stem,
        format=model.format,
        device=target.name,
        status="ok",
        artifact=artifact,
        measurements=values,
        runtime=outcome.runtime,
        layers=tuple(outcome.info.get("details") or ()),
        notes=(
            *(("random inputs: no accuracy",) if dataset is None and executed else ()),
            *outcome.info.get("notes", ()),
            *findings,
            *conditions(outcome.info),
            *((EMULATED,) if target.emulated and outcome.outputs else ()),
        ),
    )
    run = Run(
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 3),
        command=shlex.join(["edgeopt", *sys.argv[1:]]),
        edgeopt=importlib.metadata.version("edgeopt"),
        evaluation_digest=evaluation.digest,
        samples=len(outcome.outputs[0]) if executed else 0,
    )
    return Report(recipe=path.name, run=run, environment={target.name: bench.probe}, results=(result,))


def fit_layout(model: Model, preprocessing: Preprocessing, dataset: Dataset) -> tuple[Model, Preprocessing]:
    """Tell NHWC from NCHW by holding the first sample against the shapes that the runtime told."""
    sample = next(iter(dataset.samples()), None)
    if sample is None:
        return model, preprocessing
    specs = []
    for value, spec in zip(sample.inputs, model.inputs, strict=False):
        wanted = spec.shape[1:]
        if spec.layout is None and value.ndim == 3:
            as_nhwc, as_nchw = (value.shape[2], *value.shape[:2]), (*value.shape[1:], value.shape[0])
            if value.shape == wanted:
                spec = _with(spec, preprocessing.layout)
            elif as_nhwc == wanted and preprocessing.layout in (None, "NHWC"):
                spec, preprocessing = _with(spec, "NCHW"), preprocessing.model_copy(update={"layout": "NHWC"})
            elif as_nchw == wanted and preprocessing.layout in (None, "NCHW"):
                spec, preprocessing = _with(spec, "NHWC"), preprocessing.model_copy(update={"layout": "NCHW"})
        specs.append(spec)
    return model.model_copy(update={"inputs": (*specs, *model.inputs[len(specs) :])}), preprocessing


def _with(spec: TensorSpec, layout: str | None) -> TensorSpec:
    return spec.model_copy(update={"layout": layout})
