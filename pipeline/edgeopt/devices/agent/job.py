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
from edgeopt_agent.inputs import (
    RANDOM_SAMPLES,
    check_inputs,
    chunk,
    open_inputs,
    random_inputs,
    samples_of,
    shown_shape,
)
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
    inputs = random_inputs(session, path, random) if names is None else open_inputs(names, folder)
    samples = RANDOM_SAMPLES if names is None else job["samples"]
    check_inputs(inputs, session.inputs, path.name, samples)
    with _running(path, inputs):
        for index in range(FIRST_RUNS):
            session.run(chunk(inputs, index, _latency_batch(session, inputs)))
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
        "n": samples_of(inputs),
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
    shapes = ", ".join(shown_shape((1, *array.shape[1:])) for array in inputs)
    return explained("model", f"{path.name} failed while running on inputs of shape {shapes}")


def _run_all(session: ModelSession, inputs: list[Any], batch: int, folder: Path, outputs: str | None) -> int:
    """Run every sample and write the outputs; returns the number of NaN or infinite values."""
    total = samples_of(inputs)
    fixed = _fixed_batch(session, inputs)
    size = fixed or min(batch, session.max_batch or batch)
    non_finite = 0
    with OutputFile(folder / outputs if outputs else None, total) as file:
        for start in range(0, total, size):
            count = min(size, total - start)
            run = size if fixed else count
            results, _ = session.run(chunk(inputs, start, run))
            for value in results:
                if np.issubdtype(value.dtype, np.floating):
                    non_finite += int(value.size - np.count_nonzero(np.isfinite(value)))
            file.write(count, run, results)
    return non_finite


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
        given = chunk(inputs, sample % samples_of(inputs), _latency_batch(session, inputs))
        if session.inputs is not None:
            given = [fit(array, spec) for array, spec in zip(given, session.inputs)]
        layers = session.layers(given)
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
    return lambda index: session.run(chunk(inputs, index % samples_of(inputs), size))[1]


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
