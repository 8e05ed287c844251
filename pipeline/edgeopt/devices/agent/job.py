"""Runs one job: loads the model, runs all samples, times it, and reports the results."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from edgeopt_agent.conditions import Watch, energy_per_run
from edgeopt_agent.failure import AgentError, explained
from edgeopt_agent.memory import Peak
from edgeopt_agent.outputs import OutputFile
from edgeopt_agent.probe import probe
from edgeopt_agent.protocol import PROTOCOL, Job, JobResult, LayerInfo, Probe, Tensor, Timing
from edgeopt_agent.session import TRUST, ModelSession, Spec, find_runtime, fit, prepare_runtime
from edgeopt_agent.timing import take_turns

FIRST_RUNS = 3
NULL_RUNS = 200
TIMES = "times.npz"
COMPILED = "compiled.bin"
LAYERS = "layers.npz"
RANDOM_SAMPLES = 16


def run_job(job: Job, folder: Path) -> JobResult:
    """Run a job whose files are in ``folder``.

    Raises:
        AgentError: the job failed for a known reason, which its kind classifies.
    """
    path = folder / job["model"]
    if TRUST in job["options"]:
        raise AgentError("runtime", f"runtime {job['runtime']!r} has no option {TRUST!r}: no device sets it")
    threads, options = job["threads"], dict(job["options"])
    if TRUST in find_runtime(job["runtime"]).known_options:
        options[TRUST] = job["trust"]
    if not path.exists():
        raise AgentError("input", f"the job's model {job['model']} does not exist")
    environment = probe()
    # Before memory is measured: the first use of numpy's generator allocates some megabytes.
    random = np.random.RandomState(0)
    kind = prepare_runtime(job["runtime"], path, threads, options)
    # The model's own code, added after the runtime is imported: its files may shadow the runtime's modules.
    # What else its project has is searched last.
    places = [str(folder / place) for place in job["python_path"]]
    sys.path[:0] = places[:1]
    sys.path += places[1:]

    memory = Peak()
    start = time.perf_counter()
    session = _load(kind, job["runtime"], path, threads, options)
    load_seconds = time.perf_counter() - start
    if not session.executes:
        return _without_running(session, kind, job, folder, environment)
    names = job["inputs"]
    inputs = _random_inputs(session, path, random) if names is None else _open_inputs(names, folder)
    samples = RANDOM_SAMPLES if names is None else job["samples"]
    check_inputs(inputs, session.inputs, path.name, samples)
    with _running(path, inputs):
        for index in range(FIRST_RUNS):
            session.run(_chunk(inputs, index, _latency_batch(session, inputs)))
        peak_memory = memory.bytes()
        non_finite = _run_all(session, inputs, job["batch"], folder, job["outputs"])

    timing, baseline_name = job["latency"], job["baseline"]
    result: JobResult = {
        "protocol": PROTOCOL,
        "ok": True,
        "executed": True,
        "compiled": False,
        "runtime": {"name": job["runtime"], "version": kind.version()},
        "inputs": _described(session.inputs),
        "outputs": _described(session.outputs),
        "output_scales": session.output_scales(),
        "n": _samples(inputs),
        "load_seconds": load_seconds,
        "peak_memory_bytes": peak_memory,
        "peak_memory_method": memory.method,
        "non_finite": non_finite,
        "measurements": session.measurements(),
        "details": session.details() if timing else [],
        "notes": session.notes(),
        "conditions": [],
        "layers": [],
        "environment": environment,
    }
    if timing is not None:
        baseline = None
        if baseline_name is not None:
            baseline_path = folder / baseline_name
            baseline = _load(kind, job["runtime"], baseline_path, threads, options)
            check_inputs(inputs, baseline.inputs, baseline_path.name, samples)
        watch = Watch(gpus=session.on_gpu)
        with _running(path, inputs):
            times = _latencies(session, baseline, inputs, timing, watch)
            energy = energy_per_run(_caller(session, inputs))
        result["conditions"] = watch.intervals
        if energy is not None:
            result["measurements"]["energy_mj"] = {"value": energy * 1e3, "unit": "mJ"}
        # Not in the JSON result: a small model runs a hundred thousand times in two seconds.
        np.savez(folder / TIMES, **times)
    if job["layers"]:
        with _running(path, inputs):
            result["layers"] = _keep_layers(session, inputs, job["layers"], folder)
    return result


def _without_running(
    session: ModelSession,
    kind: type[ModelSession],
    job: Job,
    folder: Path,
    environment: Probe,
) -> JobResult:
    """The result of a runtime that compiles the model instead of running it."""
    # A job without data only queries the model's inputs: nothing is measured.
    measured = job["inputs"] is not None
    compiled = session.compiled() if measured else None
    if compiled is not None:
        shutil.copyfile(compiled, folder / COMPILED)
    return {
        "protocol": PROTOCOL,
        "ok": True,
        "executed": False,
        "compiled": compiled is not None,
        "runtime": {"name": job["runtime"], "version": kind.version()},
        "inputs": _described(session.inputs),
        "outputs": _described(session.outputs),
        "output_scales": [],
        "n": 0,
        "load_seconds": None,
        "peak_memory_bytes": None,
        "peak_memory_method": "",
        "non_finite": 0,
        "measurements": session.measurements() if measured else {},
        "details": session.details() if measured else [],
        "notes": session.notes() if measured else [],
        "conditions": [],
        "layers": [],
        "environment": environment,
    }


def _load(
    kind: type[ModelSession], runtime: str, path: Path, threads: int, options: dict[str, Any]
) -> ModelSession:
    if not path.exists():
        raise AgentError("input", f"the job's model {path.name} does not exist")
    with explained("model", f"{runtime} rejected {path.name}"):
        return kind(path, threads, options)


def _running(path: Path, inputs: list[Any]) -> explained:
    shapes = ", ".join(_shape((1, *array.shape[1:])) for array in inputs)
    return explained("model", f"{path.name} failed while running on inputs of shape {shapes}")


def _open_inputs(names: list[str], folder: Path) -> list[Any]:
    arrays = []
    for name in names:
        with explained("input", f"{name} cannot be read"):
            arrays.append(np.load(folder / name, mmap_mode="r", allow_pickle=False))
    return arrays


def _random_inputs(session: ModelSession, path: Path, random: Any) -> list[Any]:
    """Random inputs for a job without data: real numbers are standard normal, integers uniform."""
    if session.inputs is None:
        raise AgentError("input", f"{path.name} does not declare its inputs: the job must provide data")
    arrays = []
    for spec in session.inputs:
        # As many samples of every input: a state of two layers has two rows in each.
        rows = (spec.shape[0] or 1) // (session.max_batch or 1) if spec.shape else 1
        shape = (RANDOM_SAMPLES * max(rows, 1), *(1 if size is None else size for size in spec.shape[1:]))
        dtype = np.dtype(spec.dtype)
        if np.issubdtype(dtype, np.floating):
            arrays.append(random.standard_normal(shape).astype(dtype))
        elif spec.scale:
            limits = np.iinfo(dtype)
            arrays.append(random.randint(limits.min, limits.max + 1, shape).astype(dtype))
        else:
            # Possibly indices into a table of unknown size: small ones are the safest guess.
            arrays.append(random.randint(0, 2, shape).astype(dtype))
    return arrays


def check_inputs(arrays: list[Any], specs: list[Spec] | None, name: str, samples: int | None) -> None:
    """Check that the data fits the model's inputs.

    Raises:
        AgentError: kind ``input``: it does not; the message has both shapes.
    """
    given = ", ".join(_shape(array.shape) for array in arrays)
    if specs is not None and len(arrays) != len(specs):
        expected = ", ".join(f"{spec.name} {_shape(spec.shape)}" for spec in specs)
        raise AgentError(
            "input",
            f"{name} has {len(specs)} input(s): {expected}; the job has {len(arrays)}: {given or 'none'}",
        )
    if not arrays:
        raise AgentError("input", f"the job has no inputs for {name}")
    if any(array.ndim == 0 for array in arrays) or not _same_samples(arrays, specs, samples):
        raise AgentError("input", f"the inputs differ in their number of samples: {given}")
    if _samples(arrays) == 0:
        raise AgentError("input", f"the inputs contain no samples: {given}")
    for array, spec in zip(arrays, specs or ()):
        fits = max(len(spec.shape), 1) == array.ndim and all(
            expected is None or expected == size for expected, size in zip(spec.shape[1:], array.shape[1:])
        )
        if not fits:
            raise AgentError(
                "input",
                f"input {spec.name!r} of {name} has shape {_shape(spec.shape)}, "
                f"but the data has shape {_shape(('n', *array.shape[1:]))}",
            )


def _run_all(session: ModelSession, inputs: list[Any], batch: int, folder: Path, outputs: str | None) -> int:
    """Run every sample and write the outputs; returns the number of NaN or infinite values."""
    total = _samples(inputs)
    fixed = _fixed_batch(session, inputs)
    size = fixed or min(batch, session.max_batch or batch)
    non_finite = 0
    with OutputFile(folder / outputs if outputs else None, total) as file:
        for start in range(0, total, size):
            count = min(size, total - start)
            run = size if fixed else count
            results, _ = session.run(_chunk(inputs, start, run))
            for value in results:
                if np.issubdtype(value.dtype, np.floating):
                    non_finite += int(value.size - np.count_nonzero(np.isfinite(value)))
            file.write(count, run, results)
    return non_finite


def _chunk(inputs: list[Any], start: int, size: int) -> list[Any]:
    """``size`` samples from ``start`` on, wrapping around at the end of the data."""
    total = _samples(inputs)
    if start + size <= total:
        rows = [len(array) // total for array in inputs]
        return [np.array(array[start * n : (start + size) * n]) for array, n in zip(inputs, rows)]
    indices = np.arange(start, start + size) % total
    return [np.array(array[indices]) for array in inputs]


def _same_samples(arrays: list[Any], specs: list[Spec] | None, samples: int | None) -> bool:
    """Whether all inputs have as many samples; some have several rows for each, if job and file agree."""
    if samples is None:
        return len({len(array) for array in arrays}) == 1
    if samples <= 0 or any(len(array) % samples for array in arrays):
        return False
    rows = [len(array) // samples for array in arrays]
    return specs is None or all(n == 1 or spec.shape[:1] == (n,) for n, spec in zip(rows, specs))


def _samples(inputs: list[Any]) -> int:
    """The number of samples; inputs without a batch axis, such as a state, have several rows for each."""
    return min(len(array) for array in inputs)


def _fixed_batch(session: ModelSession, inputs: list[Any]) -> int | None:
    """The number of samples of every run, if it is fixed: 1 if an input has no batch axis."""
    return session.fixed_batch if len({len(array) for array in inputs}) == 1 else 1


def _keep_layers(
    session: ModelSession, inputs: list[Any], samples: list[int], folder: Path
) -> list[LayerInfo]:
    """Write every operator's outputs for some samples, as stored by the model: ``layer_0`` … of n samples.

    Writes nothing if the runtime does not expose them.
    """
    values: list[list[Any]] = []
    described: list[LayerInfo] = []
    for sample in samples:
        chunk = _chunk(inputs, sample % _samples(inputs), _latency_batch(session, inputs))
        if session.inputs is not None:
            chunk = [fit(array, spec) for array, spec in zip(chunk, session.inputs)]
        layers = session.layers(chunk)
        if layers is None:
            return []
        described = [
            {"name": layer.name, "operator": layer.operator, "scale": layer.scale} for layer in layers
        ]
        values.append([layer.values for layer in layers])
    arrays: dict[str, Any] = {f"layer_{index}": np.stack(each) for index, each in enumerate(zip(*values))}
    np.savez(folder / LAYERS, **arrays)
    return described


def _latency_batch(session: ModelSession, inputs: list[Any]) -> int:
    return _fixed_batch(session, inputs) or 1


def _latencies(
    session: ModelSession,
    baseline: ModelSession | None,
    inputs: list[Any],
    timing: Timing,
    watch: Watch,
) -> dict[str, Any]:
    """Seconds of each run of the model, of the interleaved baseline, and of the null runtime.

    ``repeats``: number of runs in each repetition.
    """
    sessions = [session] if baseline is None else [session, baseline]
    repeats = timing["repeats"]
    # A protocol (repeats > 1) fixes the run time of the model alone: the baseline's runs are added to it.
    share = len(sessions) if repeats > 1 else 1
    results: list[list[float]] = [[] for _ in sessions]
    counts = []
    for _ in range(repeats):
        runs = take_turns(
            [_caller(each, inputs) for each in sessions],
            timing["min_runs"],
            timing["min_seconds"] * share,
            timing["max_seconds"] * share,
            watch.begin,
        )
        watch.end()
        counts.append(len(runs[0]))
        for seconds, more in zip(results, runs):
            seconds.extend(more)
    null_kind = importlib.import_module("edgeopt_agent.runtimes.null").Session
    null = null_kind(
        Path(), 1, {"inputs": _described(session.inputs), "outputs": _described(session.outputs)}
    )
    (null_results,) = take_turns([_caller(null, inputs)], NULL_RUNS, 0.0, 1.0)
    return {
        "latency": np.array(results[0]),
        "baseline": np.array(results[1] if baseline is not None else []),
        "null": np.array(null_results),
        "repeats": np.array(counts),
    }


def _caller(session: ModelSession, inputs: list[Any]) -> Callable[[int], float]:
    """A function that runs one sample and returns the seconds by the session's clock."""
    size = _latency_batch(session, inputs)
    return lambda index: session.run(_chunk(inputs, index % _samples(inputs), size))[1]


def _described(specs: list[Spec] | None) -> list[Tensor] | None:
    if specs is None:
        return None
    return [
        {
            "name": spec.name,
            "shape": list(spec.shape),
            "dtype": spec.dtype,
            "scale": spec.scale,
            "zero_point": spec.zero_point,
        }
        for spec in specs
    ]


def _shape(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
