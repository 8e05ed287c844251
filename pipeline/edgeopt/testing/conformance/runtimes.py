"""Runtimes: the same answers each time, whatever the batch, and an error for what they cannot run."""

import shutil
from collections.abc import Iterator
from itertools import count

import numpy as np

from edgeopt.config.files import files_of
from edgeopt.devices.device import known_devices, load_device
from edgeopt.formats.known import format_named, formats
from edgeopt.model import Model
from edgeopt.run.bench import Bench
from edgeopt.run.store import Store
from edgeopt.testing.conformance.options import demand
from edgeopt.testing.workshop import Workshop


def check_runtime(name: str, workshop: Workshop) -> None:
    """Runs a toy of every format that it is for, the same way each time, and refuses what it cannot run.

    Raises:
        Nonconformance: it does not keep to this.
    """
    able = _formats_of(name)
    demand(bool(able), f"{name}: no format and no device file names this runtime")
    for format in able:
        _check_answers(_benches(name, format, workshop), workshop.model(format), workshop)
    _check_refusals(_benches(name, able[0], workshop), workshop.model(able[0]), workshop)


def _benches(name: str, format: str, workshop: Workshop) -> Iterator[Bench]:
    """Devices with this runtime alone. Each has a store of its own: nothing is taken from an earlier run."""
    device = workshop.bench.device.model_copy(update={"name": name, "runtimes": {format: name}})
    for number in count():
        store = Store(workshop.folder / "runtimes" / f"{name}-{format}-{number}")
        yield Bench(device, workshop.bench.agent, store).open()


def _check_answers(benches: Iterator[Bench], model: Model, workshop: Workshop) -> None:
    bench = next(benches)
    what = f"{bench.device.name} on {model.format}"
    first = bench.run(model, workshop.evaluation)
    demand(not first.error, f"{what}: {first.error}")
    demand(bool(first.outputs), f"{what} gives no outputs")
    finite = all(np.isfinite(output).all() for output in first.outputs)
    demand(finite, f"{what} gives NaN or infinity")
    few = next(benches).run(model, workshop.evaluation, limit=3)
    demand(
        all(np.array_equal(a[:3], b) for a, b in zip(first.outputs, few.outputs, strict=True)),
        f"{what}: the outputs for a sample are others in another process, or depend on the samples after it",
    )


def _check_refusals(benches: Iterator[Bench], model: Model, workshop: Workshop) -> None:
    bench = next(benches)
    what = f"{bench.device.name} on {model.format}"
    odd = bench.run(model, workshop.evaluation, limit=1, options={"no_such_option": 1})
    demand("no_such_option" in odd.error, f"{what} takes an option that it does not have")
    broken = workshop.folder / "runtimes" / f"broken-{bench.device.name}" / f"broken{model.path.suffix}"
    shutil.rmtree(broken.parent, ignore_errors=True)
    broken.parent.mkdir(parents=True)
    format_named(model.format).copy_to(model.path, broken)
    for file in files_of(broken):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    half = model.model_copy(update={"path": broken})
    refused = next(benches).run(half, workshop.evaluation, limit=1)
    demand(bool(refused.error), f"{what} runs half of a file")


def _formats_of(runtime: str) -> list[str]:
    """The formats that it runs: it is their usual runtime, or a device file says so."""
    named = {name for name, format in formats().items() if format.runtime == runtime}
    for device in known_devices():
        named |= {name for name, of in load_device(device).runtimes.items() if of == runtime}
    return sorted(named)
