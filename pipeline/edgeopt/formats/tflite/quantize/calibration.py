"""Calibration of a float TFLite file: the range of every tensor, with one sample in memory at a time."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.calibration import LARGEST, Calibrator, Histogram
from edgeopt.formats.tflite.files.graphs import Signature, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile, parse
from edgeopt.formats.tflite.graph import interpreter as tflite_interpreter
from edgeopt.formats.tflite.quantize.quantizer import Ranges
from edgeopt.model import Array, Model
from edgeopt.plugin import Context

Samples: TypeAlias = Iterable[Sequence[Array]]
FEW = 32
"""Fewer samples than this cause a note."""


def samples(model: Model, source: Signature, context: Context) -> Iterator[tuple[Array, ...]]:
    """The calibration samples in the order and shape of the file's inputs, each validated before use.

    Raises:
        StageError: there are no samples, or one is unusable; the message gives its number.
    """
    if context.calibration is None:
        raise StageError("int8 needs calibration data", fix="add 'data: {calibration: ...}' to the recipe")
    count = 0
    for number, values in enumerate(context.calibration.inputs(model)):
        if not all(np.isfinite(value).all() for value in values):
            raise StageError(
                f"calibration sample {number} contains NaN or infinite values",
                fix="remove the sample, or check the preprocessing",
            )
        for spec, value in zip(source.inputs, values, strict=True):
            # A free axis has size 1 in the interpreter.
            if value.shape != tuple(size or 1 for size in spec.shape):
                # The interpreter would silently resize the graph and calibrate a different one.
                raise StageError(
                    f"calibration sample {number} has the shape {list(value.shape)}, "
                    f"input {spec.name!r} expects {list(spec.shape)}",
                    fix="check the layout of the data in 'preprocessing'",
                )
        count += 1
        yield values
    if not count:
        raise StageError(
            "the calibration data are empty", fix="provide at least one sample, preferably 100 or more"
        )
    if count < FEW:
        plural = "sample" if count == 1 else "samples"
        context.note(f"only {count} calibration {plural}: values outside their range will be clipped")


class Calibrated(NamedTuple):
    """The ranges of the tensors of a file, without infinite values, and the tensors that have such values."""

    ranges: Ranges
    unbounded: frozenset[str] = frozenset()


def extremes(content: bytes, name: str, source: Signature, values: Callable[[], Samples]) -> Calibrated:
    """Minimum and maximum of every tensor over all samples, which are read twice if some are infinite.

    Raises:
        StageError: the model computes NaN.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    # The profiler of the runtime collects the same ranges 5 to 10 times faster than reading all tensors.
    observer = calibrator.Calibrator(
        content,
        num_threads=1,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=qsv_utils.min_max_update,
    )
    signature = next(iter(observer.get_signature_list()), None)
    recipe = recipe_manager.RecipeManager()
    for sample in values():
        named = {spec.name: value for spec, value in zip(source.inputs, sample, strict=True)}
        # One call per sample: a single call would first collect all samples in a list.
        observer.calibrate({signature: [named]}, recipe)
    ranges: Ranges = observer.get_model_qsvs()
    infinite = {
        tensor
        for tensor, limits in ranges.items()
        if not (np.abs([limits["min"], limits["max"]]) < LARGEST).all()
    }
    if infinite:
        again = calibrated(content, name, values(), "minmax", 100, 256, only=infinite)
        if missing := infinite - again.ranges.keys():
            _raise_not_finite(min(missing))
        ranges |= again.ranges
    return Calibrated(ranges, frozenset(infinite))


def calibrated(
    content: bytes,
    name: str,
    values: Samples,
    method: Calibrator,
    percentile: float,
    levels: int,
    only: Collection[str] | None = None,
) -> Calibrated:
    """The range of every tensor, or ``only`` of some, by ``method``, for quantization to ``levels`` integers.

    Memory is one histogram of fixed size per tensor. Ranges for 16 bits (65,536 levels) are symmetric, as the
    TFLite quantization specification requires.

    Raises:
        StageError: the model computes NaN.
    """
    interpreter = tflite_interpreter.opened(content, name, keep_all=True)
    watched = [
        (tensor, index)
        for tensor, index in _activations(parse(content, name))
        if only is None or tensor in only
    ]
    histograms = {tensor: Histogram() for tensor, _ in watched}
    for sample in values:
        tflite_interpreter.feed(interpreter, sample)
        for tensor, index in watched:
            try:
                activation = interpreter.get_tensor(index)
            except ValueError:  # an output of a loop that nothing reads has no memory
                continue
            try:
                histograms[tensor].add(activation)
            except ValueError:
                _raise_not_finite(tensor)
    ranges: Ranges = {}
    for tensor, histogram in histograms.items():
        if histogram.count:
            low, high = histogram.range(method, percentile=percentile, symmetric=levels > 256, levels=levels)
            ranges[tensor] = {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
    return Calibrated(ranges, frozenset(name for name, each in histograms.items() if each.is_unbounded))


def _activations(file: TfliteFile) -> Iterator[tuple[str, int]]:
    """Name and number of the float tensors of the main graph that are not constant."""
    for tensor in graphs_of(file)[0].tensors:
        if tensor.dtype == "float32" and not tensor.is_constant:
            yield tensor.name, tensor.number


def _raise_not_finite(tensor: str) -> None:
    raise StageError(
        f"the float model computes NaN or infinite values in {tensor!r} on the calibration data",
        fix="check the preprocessing, and whether the weights are finite",
    )
