"""Carries out one job: load the model, run all samples, time it, and say what was found."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from edgeopt_agent import PROTOCOL
from edgeopt_agent.conditions import Watch, energy_per_run
from edgeopt_agent.failure import AgentError, explained
from edgeopt_agent.memory import Peak
from edgeopt_agent.outputs import OutputFile
from edgeopt_agent.probe import probe
from edgeopt_agent.session import ModelSession, Spec, fit, prepare_runtime
from edgeopt_agent.timing import take_turns

FIRST_RUNS = 3
NULL_RUNS = 200
TIMES = "times.npz"
COMPILED = "compiled.bin"
LAYERS = "layers.npz"
MADE_UP_SAMPLES = 16


def carry_out(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result of a job whose files lie in ``folder``.

    Raises:
        AgentError: with its kind, for everything that can be explained.
    """
    path = folder / job["model"]
    threads, options = int(job.get("threads", 1)), dict(job.get("options") or {})
    if not path.exists():
        raise AgentError("input", f"the job's model {job['model']} is not there")
    environment = probe()
    # Made before memory is looked at: its first use brings in some megabytes.
    random = np.random.RandomState(0)
    kind = prepare_runtime(job["runtime"], path, threads, options)
    # The model's own code. Only now: a file beside it may have the name of a module of the runtime's.
    for place in reversed(job.get("python_path") or []):
        sys.path.insert(0, str(folder / place))

    memory = Peak()
    start = time.perf_counter()
    session = _load(kind, job["runtime"], path, threads, options)
    load_seconds = time.perf_counter() - start
    if not session.executes:
        return _looked_at(session, kind, job, folder, environment)
    inputs = (
        _made_up(session, path, random) if job.get("inputs") is None else _open_inputs(job["inputs"], folder)
    )
    check_inputs(inputs, session.inputs, path.name)
    with _running(path, inputs):
        for index in range(FIRST_RUNS):
            session.run(_chunk(inputs, index, _latency_batch(session)))
        peak_memory = memory.bytes()
        non_finite = _run_all(session, inputs, int(job.get("batch") or 1), folder, job.get("outputs"))

    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        "ok": True,
        "runtime": {"name": job["runtime"], "version": kind.version()},
        "inputs": _described(session.inputs),
        "outputs": _described(session.outputs),
        "output_scales": session.output_scales(),
        "n": len(inputs[0]),
        "load_seconds": load_seconds,
        "peak_memory_bytes": peak_memory,
        "peak_memory_method": memory.method,
        "non_finite": non_finite,
        "measurements": session.measurements(),
        "details": session.details() if job.get("latency") else [],
        "notes": session.notes(),
        "environment": environment,
    }
    if job.get("latency"):
        baseline = None
        if job.get("baseline"):
            baseline_path = folder / job["baseline"]
            baseline = _load(kind, job["runtime"], baseline_path, threads, options)
            check_inputs(inputs, baseline.inputs, baseline_path.name)
        watch = Watch(gpus=session.on_gpu)
        with _running(path, inputs):
            times = _latencies(session, baseline, inputs, job["latency"], watch)
            energy = energy_per_run(_caller(session, inputs))
        result["conditions"] = watch.spells
        if energy is not None:
            result["measurements"]["energy_mj"] = {"value": energy * 1e3, "unit": "mJ"}
        # A small model runs a hundred thousand times in two seconds: too many numbers for JSON.
        np.savez(folder / TIMES, **times)
    if job.get("layers"):
        with _running(path, inputs):
            result["layers"] = _keep_layers(session, inputs, job["layers"], folder)
    return result


def _looked_at(
    session: ModelSession,
    kind: type[ModelSession],
    job: dict[str, Any],
    folder: Path,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """The result of a runtime that compiles the model instead of running it."""
    # A job without data only asks what the model takes: nothing is measured for it.
    asked = job.get("inputs") is not None
    compiled = session.compiled() if asked else None
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
        "n": 0,
        "measurements": session.measurements() if asked else {},
        "details": session.details() if asked else [],
        "notes": session.notes() if asked else [],
        "environment": environment,
    }


def _load(
    kind: type[ModelSession], runtime: str, path: Path, threads: int, options: dict[str, Any]
) -> ModelSession:
    if not path.exists():
        raise AgentError("input", f"the job's model {path.name} is not there")
    with explained("model", f"{runtime} refused {path.name}"):
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


def _made_up(session: ModelSession, path: Path, random: Any) -> list[Any]:
    """Random inputs for a job without data: real numbers are standard normal, integers uniform."""
    if session.inputs is None:
        raise AgentError("input", f"{path.name} does not tell what it takes: the job must give data")
    arrays = []
    for spec in session.inputs:
        shape = (MADE_UP_SAMPLES, *(1 if size is None else size for size in spec.shape[1:]))
        dtype = np.dtype(spec.dtype)
        if np.issubdtype(dtype, np.floating):
            arrays.append(random.standard_normal(shape).astype(dtype))
        elif spec.scale:
            limits = np.iinfo(dtype)
            arrays.append(random.randint(limits.min, limits.max + 1, shape).astype(dtype))
        else:
            # Indices into a table of unknown size: small ones are the safest guess.
            arrays.append(random.randint(0, 2, shape).astype(dtype))
    return arrays


def check_inputs(arrays: list[Any], specs: list[Spec] | None, name: str) -> None:
    """Hold the data against what the model takes.

    Raises:
        AgentError: kind ``input``, with both shapes in its message.
    """
    given = ", ".join(_shape(array.shape) for array in arrays)
    if specs is not None and len(arrays) != len(specs):
        wanted = ", ".join(f"{spec.name} {_shape(spec.shape)}" for spec in specs)
        raise AgentError(
            "input",
            f"{name} takes {len(specs)} input(s): {wanted}; the job gives {len(arrays)}: {given or 'none'}",
        )
    if not arrays:
        raise AgentError("input", f"the job gives no inputs for {name}")
    if any(array.ndim == 0 for array in arrays) or len({len(array) for array in arrays}) != 1:
        raise AgentError("input", f"the inputs differ in their number of samples: {given}")
    if len(arrays[0]) == 0:
        raise AgentError("input", f"the inputs hold no samples: {given}")
    for array, spec in zip(arrays, specs or ()):
        fits = len(spec.shape) == array.ndim and all(
            wanted is None or wanted == size for wanted, size in zip(spec.shape[1:], array.shape[1:])
        )
        if not fits:
            raise AgentError(
                "input",
                f"input {spec.name!r} of {name} has shape {_shape(spec.shape)}, "
                f"but the data have shape {_shape(('n', *array.shape[1:]))}",
            )


def _run_all(session: ModelSession, inputs: list[Any], batch: int, folder: Path, outputs: str | None) -> int:
    """Run every sample and write the outputs; returns how many values are NaN or infinite."""
    total = len(inputs[0])
    size = session.fixed_batch or min(batch, session.max_batch or batch)
    non_finite = 0
    with OutputFile(folder / outputs if outputs else None, total) as file:
        for start in range(0, total, size):
            count = min(size, total - start)
            run = size if session.fixed_batch else count
            results, _ = session.run(_chunk(inputs, start, run))
            for value in results:
                if np.issubdtype(value.dtype, np.floating):
                    non_finite += int(value.size - np.count_nonzero(np.isfinite(value)))
            file.write(count, run, results)
    return non_finite


def _chunk(inputs: list[Any], start: int, size: int) -> list[Any]:
    """``size`` samples from ``start`` on, beginning again at the first where the data end."""
    total = len(inputs[0])
    if start + size <= total:
        return [np.array(array[start : start + size]) for array in inputs]
    indices = np.arange(start, start + size) % total
    return [np.array(array[indices]) for array in inputs]


def _keep_layers(
    session: ModelSession, inputs: list[Any], samples: list[int], folder: Path
) -> list[dict[str, Any]] | None:
    """Every operator's outputs for some samples, as the model stores them: ``layer_0`` … with n samples."""
    kept: list[list[Any]] = []
    described: list[dict[str, Any]] = []
    for sample in samples:
        chunk = _chunk(inputs, sample % len(inputs[0]), _latency_batch(session))
        if session.inputs is not None:
            chunk = [fit(array, spec) for array, spec in zip(chunk, session.inputs)]
        layers = session.layers(chunk)
        if layers is None:
            return None
        described = [{key: getattr(layer, key) for key in ("name", "operator", "scale")} for layer in layers]
        kept.append([layer.values for layer in layers])
    arrays: dict[str, Any] = {f"layer_{index}": np.stack(values) for index, values in enumerate(zip(*kept))}
    np.savez(folder / LAYERS, **arrays)
    return described


def _latency_batch(session: ModelSession) -> int:
    return session.fixed_batch or 1


def _latencies(
    session: ModelSession,
    baseline: ModelSession | None,
    inputs: list[Any],
    wanted: dict[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    """Seconds of each run of the model, of the baseline between its runs, and of a session that does nothing.

    ``repeats`` holds how many runs each repetition of the whole has.
    """
    sessions = [session] if baseline is None else [session, baseline]
    repeats = int(wanted.get("repeats", 1))
    # Where a protocol fixes how long a model runs, the time of the one it takes turns with does not count.
    share = len(sessions) if repeats > 1 else 1
    results: list[list[float]] = [[] for _ in sessions]
    counts = []
    for _ in range(repeats):
        spell = take_turns(
            [_caller(of, inputs) for of in sessions],
            int(wanted.get("min_runs", 50)),
            float(wanted.get("min_seconds", 2.0)) * share,
            float(wanted.get("max_seconds", 30.0)) * share,
            watch.begin,
        )
        watch.end()
        counts.append(len(spell[0]))
        for seconds, more in zip(results, spell):
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


def _caller(of: ModelSession, inputs: list[Any]) -> Callable[[int], float]:
    """Runs one sample and returns the seconds by the session's own clock."""
    return lambda index: of.run(_chunk(inputs, index % len(inputs[0]), _latency_batch(of)))[1]


def _described(specs: list[Spec] | None) -> list[dict[str, Any]] | None:
    return None if specs is None else [dict(spec._asdict(), shape=list(spec.shape)) for spec in specs]


def _shape(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
