"""``profile``: measure one model file."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.optimize import Shapes, shapes_of
from edgeopt.cli.options import AsJson, DataRoot, DeviceFolders, Protocol, device_names, folders


def profile(
    file: Annotated[Path, typer.Argument(help="A .tflite, .onnx, .ptl or .pte file, or a source model.")],
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Device to measure on (default: host); see 'edgeopt devices list'.",
            autocompletion=device_names,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="An .npz file with inputs 'x' and, for accuracy, labels 'y'."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Take data, preprocessing and metric from this recipe.")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="Metric to compute if --data has labels.")] = "top1",
    shape: Shapes = None,
    min_runs: Annotated[int, typer.Option(help="Measure latency at least this many times.", min=2)] = 50,
    min_seconds: Annotated[float, typer.Option(help="Measure latency for at least this long.", min=0)] = 2.0,
    protocol: Protocol = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow a file that runs code, or reads or writes other files.")
    ] = False,
    data_root: DataRoot = None,
    devices: DeviceFolders = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency, memory, size and accuracy of any model file on a device.

    Exit code 0: it ran. 2: the command is wrong. 3: it did not run, or takes more memory than the device has.
    """
    from pydantic import ValidationError

    from edgeopt.cli.screen.tables import show_report
    from edgeopt.commands.profile import profile as run
    from edgeopt.config.nearest import nearest
    from edgeopt.config.registry import find
    from edgeopt.errors import UsageError
    from edgeopt.evaluation.datasets.npz import Npz
    from edgeopt.model import InputPreprocessing, TensorSpec
    from edgeopt.plugin import Dataset, Decoder, Head, Metric, NamedMetric
    from edgeopt.recipe.document import PROTOCOLS, Latency
    from edgeopt.recipe.planner import source_of
    from edgeopt.recipe.resolve import load_recipe
    from edgeopt.reports import render

    try:
        timing = Latency(
            min_runs=min_runs, min_seconds=min_seconds, max_seconds=max(min_seconds, Latency().max_seconds)
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg'].lower()}") from error
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise UsageError(f"no protocol {protocol!r}{nearest(protocol, [*PROTOCOLS])}")
        timing = Latency.model_validate({"protocol": protocol})
    if data is not None and recipe is not None:
        raise UsageError("give either --data or --recipe, not both")
    dataset: Dataset | None = None
    preprocessing: InputPreprocessing | None = None
    metrics: tuple[NamedMetric, ...] = ()
    heads: tuple[Head, ...] = ()
    decoder: Decoder | None = None
    specs = tuple(
        TensorSpec(name=f"input_{index}", shape=each, layout=None)
        for index, each in enumerate(shapes_of(shape))
    )
    if data is not None:
        if not data.is_file():
            raise UsageError(f"no such file: {data}")
        labelled = "y" in Npz.keys_of(data)
        dataset = Npz(path=data, label="y" if labelled else None)
        if labelled:
            metrics = (NamedMetric(metric, find(Metric, metric)()),)
    if recipe is not None:
        loaded = load_recipe(recipe, data_root=data_root, device_folders=folders(devices))
        source, _ = source_of(loaded)
        dataset, preprocessing = loaded.evaluation, InputPreprocessing(loaded.model.preprocess, source.inputs)
        metrics = tuple(named for named in loaded.metrics if named.metric.against == "labels")
        heads, decoder = loaded.heads, loaded.decoder
    reports = [
        run(
            file,
            device=name,
            device_folders=folders(devices),
            dataset=dataset,
            preprocessing=preprocessing,
            metrics=metrics,
            heads=heads,
            decoder=decoder,
            inputs=specs,
            protocol=timing,
            trust=trust,
        )
        for name in dict.fromkeys(device or ("host",))
    ]
    report = reports[0].model_copy(
        update={
            "results": tuple(row for each in reports for row in each.results),
            "environment": {name: probe for each in reports for name, probe in each.environment.items()},
        }
    )
    if as_json:
        typer.echo(render(report, "json"), nl=False)
    else:
        show_report(report)
    raise typer.Exit(report.exit_code)
