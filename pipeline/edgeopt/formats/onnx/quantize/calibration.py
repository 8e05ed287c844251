"""Calibration of an ONNX graph: the range of every tensor over the samples, in constant memory.

The percentile and entropy calibrators of onnxruntime keep all activations of all samples, and the latter
returns min-max ranges; here only the activations of one sample are in memory at a time.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.onnx.files import model_file as onnx_model_file
from edgeopt.model import Array, Outputs, TensorSpec

FUSED = "/MatMulAddFusion"
"""Suffix that onnxruntime appends to the name of a matrix product fused with the Add after it."""
CHUNK = 64
"""Samples per merge of the ranges: onnxruntime keeps the results of all samples until they are merged."""

MOST_THREADS = 4
"""Samples that are computed at the same time; each by one thread, so that results do not depend on it."""

T = TypeVar("T")
R = TypeVar("R")
Samples: TypeAlias = Iterator[dict[str, Array]]
Ranges: TypeAlias = dict[str, tuple[float, float]]


class Observer(Protocol):
    """Receives the values of one tensor, sample by sample."""

    def add(self, values: Array) -> None:
        """Add the values of one sample."""


def prepare(source: Path, target: Path, inputs: Sequence[TensorSpec] = ()) -> None:
    """Fold constants and batch normalization and infer all shapes, independent of the processor.

    Afterwards the model is one file, with the sizes of ``inputs`` where its own are free, and every node has
    a unique name; a matrix product fused with its bias keeps its original name.

    Raises:
        StageError: onnxruntime cannot load the model.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole = target.with_name("whole.onnx")
    proto = onnx_model_file.load(source)
    onnx_model_file.fix_sizes(proto, inputs)
    whole.write_bytes(proto.SerializeToString(deterministic=True))
    try:
        quant_pre_process(str(whole), str(target), skip_symbolic_shape=True)
    except (Fail, InvalidGraph, NotImplemented, RuntimeError, ValueError) as error:
        raise StageError(f"onnxruntime cannot prepare {source.name} for quantization: {error}") from error
    proto = onnx_model_file.load(target)
    used: set[str] = set()
    # Layers are selected by node name; ONNX allows missing and repeated names.
    for node in proto.graph.node:
        name = node.name.removesuffix(FUSED)
        node.name = name if name and name not in used else node.output[0]
        used.add(node.name)
    _separate_biases(proto.graph)
    target.write_bytes(proto.SerializeToString(deterministic=True))


def _separate_biases(graph: Any) -> None:
    """Give each layer a bias of its own, with one value per output.

    onnxruntime copies a shared bias under its name and a number, which may be that of another tensor, and
    fails for those of a ``Gemm`` in other shapes, such as ``[1, outputs]``.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    taken = set[str]()
    for node in graph.node:
        if node.op_type in onnx_model_file.WEIGHTED and len(node.input) > 2 and node.input[2] in constants:
            bias = constants[node.input[2]]
            if bias.name in taken:
                copy = type(bias).FromString(bias.SerializeToString())
                copy.name = f"{bias.name}/{node.name}"
                graph.initializer.append(copy)
                node.input[2] = copy.name
                bias = copy
            taken.add(bias.name)
            if node.op_type == "Gemm" and node.input[1] in constants:
                transposed = any(each.name == "transB" and each.i for each in node.attribute)
                outputs = constants[node.input[1]].dims[0 if transposed else 1]
                values = numpy_helper.to_array(bias)
                if values.shape != (outputs,) and values.size in (1, outputs):
                    values = np.broadcast_to(values.reshape(-1), outputs)
                    bias.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), bias.name))


def named(specs: Sequence[TensorSpec], inputs: Iterable[tuple[Array, ...]]) -> Samples:
    """Samples as dictionaries by input name, each validated before use.

    Raises:
        StageError: a sample contains NaN or infinite values, or its shape does not match the model.
    """
    for number, values in enumerate(inputs):
        if not all(np.isfinite(value).all() for value in values):
            raise StageError(
                f"calibration sample {number} contains NaN or infinite values",
                fix="remove the sample, or check the preprocessing",
            )
        for spec, value in zip(specs, values, strict=True):
            if value.shape != spec.shape and None not in spec.shape:
                raise StageError(
                    f"calibration sample {number} has the shape {list(value.shape)}, "
                    f"input {spec.name!r} expects {list(spec.shape)}",
                    fix="check the layout of the data in 'preprocessing'",
                )
        yield {spec.name: value for spec, value in zip(specs, values, strict=True)}


def extremes(model: Path, samples: Samples) -> tuple[Ranges, int]:
    """Minimum and maximum of every tensor, computed by added graph nodes, and the number of samples."""
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    observer = MinMaxCalibrater(model, augmented_model_path=str(model.with_name("observed.onnx")))
    observer.augment_graph()
    observer.create_inference_session()
    count = 0
    for first in samples:
        reader = _Reader(chain([first], islice(samples, CHUNK - 1)))
        observer.collect_data(reader)
        count += reader.count
    if not count:
        return {}, 0
    ranges = observer.compute_data()
    return {name: _ends(*ranges[name].range_value) for name in ranges}, count


def _ends(low: Any, high: Any) -> tuple[float, float]:
    return float(np.min(low)), float(np.max(high))


class _Reader:
    """A calibration data reader for onnxruntime: the next sample, or None at the end."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.count = 0

    def get_next(self) -> dict[str, Array] | None:
        sample = next(self.samples, None)
        self.count += sample is not None
        return sample


def observe(model: Path, samples: Samples, observer: Callable[[], Observer]) -> tuple[dict[str, Any], int]:
    """Pass the values of every float tensor to an observer of its own; also returns the number of samples."""
    import onnx

    proto = onnx.load(str(model))
    floating = onnx.TensorProto.FLOAT
    # Some exporters list initializers among the inputs or inner values; they are not activations.
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs, inner, watched = (
        [v.name for v in values if v.type.tensor_type.elem_type == floating and v.name not in constants]
        for values in (proto.graph.input, proto.graph.value_info, proto.graph.output)
    )
    # Outputs may be listed among the inner values, too, and must not be added twice. Values that nobody reads
    # stay listed when the optimizer has dropped them.
    produced = {name for node in proto.graph.node for name in node.output}
    extra = (set(inner) & produced) - set(watched)
    proto.graph.output.extend(value for value in proto.graph.value_info if value.name in extra)
    watched += [name for name in inner if name in extra]
    path = model.with_name("watched.onnx")
    onnx.save(proto, str(path))
    run = session(path)
    observers = {name: observer() for name in dict.fromkeys((*inputs, *watched))}
    count = 0
    for sample, found in ahead(lambda sample: run.run(watched, sample), samples):
        for name in inputs:
            if name in sample:
                observers[name].add(sample[name])
        for name, values in zip(watched, found, strict=True):
            observers[name].add(values)
        count += 1
    return observers, count


def ahead(run: Callable[[T], R], samples: Iterable[T], threads: int = 1) -> Iterator[tuple[T, R]]:
    """Each sample with what ``run`` returns for it, in order; computed by threads while the caller goes on.

    At most ``threads`` results wait. onnxruntime leaves the interpreter to others while it computes, and a
    session may serve several threads.
    """
    waiting = deque[tuple[T, Future[R]]]()
    with ThreadPoolExecutor(threads) as pool:
        for sample in samples:
            waiting.append((sample, pool.submit(run, sample)))
            if len(waiting) > threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def session(path: Path, *, as_written: bool = False) -> Any:
    """An onnxruntime session with one thread; ``as_written`` disables the fusion of QDQ nodes into kernels.

    Raises:
        StageError: onnxruntime cannot load the file.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, NotImplemented) as error:
        raise StageError(f"onnxruntime cannot load {path.name}: {error}") from error


def outputs(path: Path, inputs: list[tuple[Array, ...]], *, as_written: bool = False) -> Outputs:
    """All outputs for samples of batch 1, float32 ``[n, ...]``."""
    run = session(path, as_written=as_written)
    names = [value.name for value in run.get_inputs()]
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    found = ahead(lambda values: run.run(None, dict(zip(names, values, strict=True))), inputs, threads)
    return Outputs.joined([row for _, row in found], [value.name for value in run.get_outputs()])


def save(ranges: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Write ranges to a calibration cache, which ``quantize_static`` reads instead of calibrating."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, save_tensors_data

    as_arrays = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, as_arrays), path)
