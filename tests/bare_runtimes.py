"""Model files run by their runtimes alone, without edgeopt: for evaluations that are independent of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Batches: TypeAlias = Iterable[NDArray[np.float32]]


def answers(file: Path, inputs: NDArray[np.float32]) -> list[Floats]:
    """All outputs ``[n, ...]`` of a model of one input, for inputs ``[n, ...]`` that are run one by one."""
    found = [
        [np.asarray(output, np.float64) for output in outputs]
        for outputs in RUNTIMES[file.suffix](file, inputs[:, np.newaxis])
    ]
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def snr_db(found: Floats, reference: Floats) -> float:
    """Signal-to-noise ratio of all values."""
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - found).sum()))


def _litert(file: Path, batches: Batches) -> Iterator[Sequence[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    (given,), made = interpreter.get_input_details(), interpreter.get_output_details()
    assert {each["dtype"] for each in (given, *made)} == {np.float32}
    for batch in batches:
        # Of one channel, NHWC and NCHW are the same values.
        interpreter.set_tensor(given["index"], batch.reshape(given["shape"]))
        interpreter.invoke()
        yield [interpreter.get_tensor(each["index"]) for each in made]


def _onnxruntime(file: Path, batches: Batches) -> Iterator[Sequence[Any]]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for batch in batches:
        yield session.run(None, {given.name: batch.reshape(given.shape)})


def _lite_interpreter(file: Path, batches: Batches) -> Iterator[Sequence[Any]]:
    import torch
    import torch.jit.mobile

    engine, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = "qnnpack"  # the weights are packed for it while the file is loaded
    torch.set_num_threads(1)  # of such small models, more threads mostly wait for each other
    try:
        model = torch.jit.mobile._load_for_lite_interpreter(str(file))
        with torch.no_grad():
            for batch in batches:
                found = model(torch.from_numpy(batch))
                yield [found] if isinstance(found, torch.Tensor) else list(found)
    finally:
        torch.set_num_threads(threads)
        torch.backends.quantized.engine = engine


def _executorch(file: Path, batches: Batches) -> Iterator[Sequence[Any]]:
    import executorch.kernels.quantized  # noqa: F401  # registers the operators of int8
    import torch
    from executorch.extension.pybindings._portable_lib import _load_for_executorch

    # Not executorch.runtime, which wraps this module: it imports the compiler, too.
    program = _load_for_executorch(str(file))
    for batch in batches:
        # The next run writes to the same memory.
        yield [output.clone() for output in program.forward([torch.from_numpy(batch)])]


RUNTIMES: dict[str, Callable[[Path, Batches], Iterator[Sequence[Any]]]] = {
    ".tflite": _litert,
    ".onnx": _onnxruntime,
    ".ptl": _lite_interpreter,
    ".pte": _executorch,
}
"""By the suffix of the file."""
FORMATS = ("tflite", "onnx", "torchscript", "executorch")
