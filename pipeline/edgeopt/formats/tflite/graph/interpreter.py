"""Running TFLite files in this process with LiteRT: for calibration and comparison, not for latency."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.model import Array, Model, Outputs


def opened(content: bytes, name: str, keep_all: bool = False) -> Any:
    """An allocated interpreter with one thread; ``keep_all`` preserves all tensors for inspection.

    Raises:
        StageError: LiteRT cannot run the file; the message contains its reason.
    """
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        # LiteRT warns about the memory for all tensors; here it is that of a single sample.
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        try:
            # An operator without a kernel is refused here, and wrong shapes by the allocation.
            interpreter = Interpreter(
                model_content=content, num_threads=1, experimental_preserve_all_tensors=keep_all
            )
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise StageError(f"LiteRT cannot run {name}: {error}") from error
    return interpreter


def feed(interpreter: Any, sample: Sequence[Array]) -> None:
    """Run one sample of real numbers; integer inputs are quantized with the parameters in the file.

    Raises:
        StageError: a kernel fails; the message contains its reason.
    """
    for detail, value in zip(interpreter.get_input_details(), sample, strict=True):
        stored = value
        if np.issubdtype(detail["dtype"], np.integer) and np.issubdtype(value.dtype, np.floating):
            scale, zero = detail["quantization"]
            limits = np.iinfo(detail["dtype"])
            stored = np.clip(np.rint(value / scale) + zero, limits.min, limits.max)
        interpreter.set_tensor(detail["index"], stored.astype(detail["dtype"]))
    try:
        interpreter.invoke()
    except RuntimeError as error:
        raise StageError(f"LiteRT cannot run the file: {error}") from error


def outputs(path: Path, samples: Iterable[Sequence[Array]]) -> Outputs:
    """All outputs for samples of batch 1, dequantized, float32 ``[n, ...]``.

    Raises:
        StageError: LiteRT cannot run the file.
    """
    interpreter = opened(path.read_bytes(), path.name)
    details = interpreter.get_output_details()
    rows = []
    for sample in samples:
        feed(interpreter, sample)
        rows.append([_real(interpreter.get_tensor(detail["index"]), detail) for detail in details])
    return Outputs.joined(rows, [spec.name for spec in read_signature(path).outputs])


def _real(value: Array, detail: Mapping[str, Any]) -> Array:
    """A tensor dequantized with the parameters in the file; another one unchanged."""
    scale, zero = detail["quantization"]
    if not (np.issubdtype(detail["dtype"], np.integer) and scale):
        return value
    real: Array = (value.astype(np.float32) - zero) * np.float32(scale)
    return real


def finished(path: Path, model: Model) -> Model:
    """The file at ``path`` as a model with the input layouts of ``model``, after a test run.

    Raises:
        StageError: LiteRT cannot run the file; missing kernels are detected only by running it.
    """
    signature = read_signature(path)
    # There is no neutral value for strings to test with.
    if all(spec.dtype != "string" for spec in signature.inputs):
        zeros = [
            np.zeros([size or 1 for size in spec.shape], np.dtype(spec.dtype)) for spec in signature.inputs
        ]
        outputs(path, [zeros])
    layouts = [spec.layout for spec in model.inputs] or [None] * len(signature.inputs)
    inputs = (
        spec.model_copy(update={"layout": layout})
        for spec, layout in zip(signature.inputs, layouts, strict=True)
    )
    return Model(
        format="tflite",
        path=path,
        inputs=tuple(inputs),
        outputs=signature.outputs,
        transposes=signature.graph.count("TRANSPOSE"),
    )


class Candidates:
    """A float file and its mixed-precision variants, for the search over layer precisions."""

    def __init__(
        self,
        source: Path,
        layers: Mapping[str, int],
        make: Callable[[frozenset[str]], Path],
        samples: Sequence[Sequence[Array]],
    ) -> None:
        self.source = source
        self.layers = layers
        self.make = make
        self.samples = samples

    def outputs(self, path: Path | None) -> Outputs:
        """All outputs for the samples; ``path`` None means the float file.

        Raises:
            StageError: LiteRT cannot run the file.
        """
        return outputs(path or self.source, self.samples)
