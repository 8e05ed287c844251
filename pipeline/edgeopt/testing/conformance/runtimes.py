"""Contract of runtimes: reproducible outputs, and errors for files that they cannot run."""

import shutil
from collections.abc import Iterator
from itertools import count

import numpy as np

from edgeopt.config.files import files_of
from edgeopt.devices.device import known_devices, load_device
from edgeopt.formats.known import format_named, formats
from edgeopt.model import Model
from edgeopt.run.measuring.bench import Bench
from edgeopt.run.store import Store
from edgeopt.testing.conformance.options import demand
from edgeopt.testing.workshop import Workshop


def check_runtime(name: str, workshop: Workshop) -> None:
    """Check that the runtime runs a toy of each of its formats reproducibly, and rejects damaged files.

    Raises:
        Nonconformance: the runtime violates the contract.
    """
    supported = _formats_of(name)
    demand(bool(supported), f"{name}: neither a format nor a device file refers to this runtime")
    for format in supported:
        _check_outputs(_benches(name, format, workshop), workshop.model(format), workshop)
    _check_refusals(_benches(name, supported[0], workshop), workshop.model(supported[0]), workshop)


def _benches(name: str, format: str, workshop: Workshop) -> Iterator[Bench]:
    """Devices with this runtime only, each with its own store, so that no result is cached."""
    device = workshop.bench.device.model_copy(update={"name": name, "runtimes": {format: name}})
    for number in count():
        store = Store(workshop.folder / "runtimes" / f"{name}-{format}-{number}")
        yield Bench(device, workshop.bench.agent, store).open()


def _check_outputs(benches: Iterator[Bench], model: Model, workshop: Workshop) -> None:
    bench = next(benches)
    subject = f"{bench.device.name} on {model.format}"
    first = bench.run(model, workshop.evaluation)
    demand(not first.error, f"{subject}: {first.error}")
    demand(bool(first.outputs), f"{subject} returns no outputs")
    finite = all(np.isfinite(output).all() for output in first.outputs)
    demand(finite, f"{subject} returns NaN or infinity")
    few = next(benches).run(model, workshop.evaluation, limit=3)
    demand(
        all(np.array_equal(a[:3], b) for a, b in zip(first.outputs, few.outputs, strict=True)),
        f"{subject}: outputs differ in another process, or depend on the following samples",
    )


def _check_refusals(benches: Iterator[Bench], model: Model, workshop: Workshop) -> None:
    bench = next(benches)
    subject = f"{bench.device.name} on {model.format}"
    unknown = bench.run(model, workshop.evaluation, limit=1, options={"no_such_option": 1})
    demand("no_such_option" in unknown.error, f"{subject} accepts an unknown option")
    broken = workshop.folder / "runtimes" / f"broken-{bench.device.name}" / f"broken{model.path.suffix}"
    shutil.rmtree(broken.parent, ignore_errors=True)
    broken.parent.mkdir(parents=True)
    format_named(model.format).copy_to(model.path, broken)
    for file in files_of(broken):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    truncated = model.model_copy(update={"path": broken})
    rejected = next(benches).run(truncated, workshop.evaluation, limit=1)
    demand(bool(rejected.error), f"{subject} runs a truncated file")


def _formats_of(runtime: str) -> list[str]:
    """The formats of a runtime: those with it as default, and those that device files assign to it."""
    names = {name for name, format in formats().items() if format.runtime == runtime}
    for device in known_devices():
        names |= {name for name, of in load_device(device).runtimes.items() if of == runtime}
    return sorted(names)
