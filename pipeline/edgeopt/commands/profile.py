"""Measurement of one model file on one device."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeopt.devices.agent_archive import build_agent
from edgeopt.devices.device import load_device
from edgeopt.devices.lint import MEMORY, errors, lint_artifact, lint_measured, summary
from edgeopt.errors import DeviceError, UsageError
from edgeopt.evaluation.samples import title
from edgeopt.formats.known import format_named
from edgeopt.formats.source import inspect
from edgeopt.model import Array, InputPreprocessing, Model, Outputs, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset, Decoder, Head, Labels, Metric, NamedMetric
from edgeopt.recipe.document import Latency
from edgeopt.results import Artifact, Report
from edgeopt.run.assemble import RunClock, result_of
from edgeopt.run.measuring.bench import Bench, timing_of
from edgeopt.run.measuring.readings import readings
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.scoring import Scorer
from edgeopt.run.store import Store


def profile(
    file: str | Path,
    *,
    device: str = "host",
    device_folders: tuple[Path, ...] = (),
    dataset: Dataset | None = None,
    preprocessing: Preprocessing | InputPreprocessing | None = None,
    metrics: Sequence[Metric | NamedMetric] = (),
    heads: Sequence[Head] = (),
    decoder: Decoder | None = None,
    inputs: tuple[TensorSpec, ...] = (),
    protocol: Latency | None = None,
    trust: bool = False,
) -> Report:
    """Measure latency, memory, size and, with labelled data, accuracy of a model file on a device.

    The result is failed, with its measurements, if the file takes more memory than the device has.

    Args:
        file: a .tflite, .onnx, .ptl or .pte file, or any source model.
        device: the name of a device, or a device file.
        dataset: samples to run; without one, seeded random inputs are used.
        preprocessing: from raw sample to model input; default none. That of a recipe knows the names and the
            layouts of the source model's inputs.
        metrics: metrics to compute against the labels of the dataset.
        heads: the tasks of the outputs; without them, the task is found by metrics, labels and outputs.
        decoder: what computes from raw heads what the task reads.
        inputs: specs for formats that do not declare their inputs, such as TorchScript.
        trust: allow a file that runs code, or reads or writes other files.

    Raises:
        UsageError: the file is not a model, or the device has no runtime for it.
        DeviceError: the device is unreachable or rejects the file.
    """
    clock = RunClock()
    path = Path(file)
    target = load_device(device, device_folders)
    source = inspect(path, trust=trust)
    model = source.model.model_copy(update={"inputs": inputs or source.model.inputs})
    kind = format_named(model.format)
    if model.format not in target.runtimes:
        raise UsageError(
            f"device {device} has no runtime for {model.format}",
            fix=f"it runs {', '.join(target.runtimes)}",
        )
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as name:
        folder = Path(name)
        bench = Bench(target, build_agent(folder / "agent.pyz"), Store(folder / "store"), trust).open()
        if bench.failure:
            raise DeviceError(bench.failure)
        if not model.inputs and not kind.tells_inputs and dataset is not None:
            # A file that was converted from the recipe's model takes the same inputs.
            own = preprocessing.source if isinstance(preprocessing, InputPreprocessing) else ()
            model = model.model_copy(update={"inputs": own or _specs_of(dataset)})
        if not model.inputs and not kind.tells_inputs:
            raise UsageError(
                f"{path} does not declare its input shapes",
                fix="give the shape of every input: --shape 1,3,32,32",
            )
        if not model.inputs:
            model = model.model_copy(update={"inputs": bench.describe(model)})
        prepared = preprocessing or Preprocessing()
        if dataset is not None:
            model, prepared = fit_layout(model, prepared, dataset)
        evaluation = Evaluation(dataset, prepared, folder)
        outcome = bench.run(model, evaluation, latency=timing_of(protocol or Latency()))
        if outcome.error:
            raise DeviceError(f"{path.name} on {device}: {outcome.error}")
        executed = bool(outcome.outputs)  # a compiler returns estimates, but no outputs
        labels = evaluation.labels(model.inputs) if dataset is not None else None
        named = [NamedMetric.of(metric) for metric in metrics]
        _check_metrics(named, labels, executed=executed)
        with Scorer(named, labels, heads=heads, decoder=decoder) as scorer:
            scores = scorer.source(Outputs(outcome.outputs, outcome.output_names)) if executed else {}
        findings = lint_artifact(path, target, model.format) + lint_measured(outcome.measurements, target)
        # The run does not show it where another machine runs the device's kernels.
        too_large = [finding for finding in errors(findings) if finding.rule in MEMORY]
        others = [finding for finding in findings if finding not in too_large]
        read = readings(model, target, outcome._replace(extra_notes=tuple(summary(others))))
    result = result_of(
        outcome._replace(error="; ".join(summary(too_large))),
        variant=path.stem,
        format=model.format,
        device=target.name,
        artifact=Artifact(path=str(path), digest=kind.digest(path), size_bytes=kind.size_bytes(path)),
        measurements=read.values | scores,
        notes=(*(("random inputs: no accuracy",) if dataset is None and executed else ()), *read.notes),
    )
    return Report(
        recipe=path.name,
        run=clock.record(evaluation_digest=evaluation.digest, samples=outcome.samples),
        environment={target.name: dict(bench.probe or {})},
        metrics=scorer.infos(),
        results=(result,),
    )


def _specs_of(dataset: Dataset) -> tuple[TensorSpec, ...]:
    """Input specs with the shapes of the first sample."""
    sample = next(iter(dataset.samples()), None)
    values = sample.inputs if sample is not None else ()
    names = sample.names if sample is not None else ()
    return tuple(
        TensorSpec(name=names[index] if names else f"input_{index}", shape=(1, *value.shape))
        for index, value in enumerate(values)
    )


def _check_metrics(metrics: Sequence[NamedMetric], labels: Labels | None, *, executed: bool) -> None:
    """Check that labels are available for every metric.

    Raises:
        UsageError: a metric needs labels or a source model.
    """
    for name, metric, _ in metrics if executed else ():
        if metric.against != "labels":
            raise UsageError(f"{name} compares with a source model: use edgeopt optimize")
        if labels is None:
            raise UsageError(f"{name} needs labelled data", fix="give it with --data")


def fit_layout(
    model: Model, preprocessing: Preprocessing | InputPreprocessing, dataset: Dataset
) -> tuple[Model, Preprocessing | InputPreprocessing]:
    """Infer NHWC or NCHW by comparing the first sample's shape with the runtime's input shapes.

    Raises:
        UsageError: the sample has not the inputs of the model.
    """
    sample = next(iter(dataset.samples()), None)
    if sample is None:
        return model, preprocessing
    names = preprocessing.names(model.inputs)
    if len(names) != len(model.inputs):
        own = ", ".join(repr(spec.name) for spec in model.inputs)
        raise UsageError(
            f"{model.path.name} takes {len(model.inputs)} inputs ({own}), the recipe's model {len(names)}",
            fix="give the recipe of this model, or its data with --data",
        )
    fits = [
        _fit(value, spec, preprocessing.of(index, spec))
        for index, (value, spec) in enumerate(
            zip(sample.in_order(names, title(dataset)), model.inputs, strict=True)
        )
    ]
    specs = tuple(spec for spec, _ in fits)
    source = tuple(spec.model_copy(update={"name": n}) for n, spec in zip(names, specs, strict=True))
    steps = {name: each for name, (_, each) in zip(names, fits, strict=True)}
    return model.model_copy(update={"inputs": specs}), InputPreprocessing(steps, source)


def _fit(value: Array, spec: TensorSpec, steps: Preprocessing) -> tuple[TensorSpec, Preprocessing]:
    """An input with the layout that a raw value reveals, and its preprocessing with that of the value."""
    if value.ndim != 3:
        return spec, steps
    expected = spec.shape[1:]
    from_nhwc, from_nchw = (value.shape[2], *value.shape[:2]), (*value.shape[1:], value.shape[0])
    if value.shape == expected:
        return spec if spec.layout else _with(spec, steps.layout), steps
    if from_nhwc == expected and spec.layout in (None, "NCHW") and steps.layout in (None, "NHWC"):
        return _with(spec, "NCHW"), steps.model_copy(update={"layout": "NHWC"})
    if from_nchw == expected and spec.layout in (None, "NHWC") and steps.layout in (None, "NCHW"):
        return _with(spec, "NHWC"), steps.model_copy(update={"layout": "NCHW"})
    return spec, steps


def _with(spec: TensorSpec, layout: str | None) -> TensorSpec:
    return spec.model_copy(update={"layout": layout})
