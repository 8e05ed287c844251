"""The range of every tensor of a float TFLite file, over calibration samples that are never held together."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.calibration import Calibrator, Histogram
from edgeopt.formats.tflite.files.graphs import Signature, graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile, parse
from edgeopt.formats.tflite.graph import interpreter as tflite_interpreter
from edgeopt.formats.tflite.quantize.quantizer import Ranges
from edgeopt.model import Array, Model
from edgeopt.plugin import Context

FEW = 32
"""Fewer samples than this are worth a remark."""
LARGEST = 3e38
"""Beyond are stand-ins for infinity, such as the padding before a maximum: not values to be represented."""


def samples(model: Model, source: Signature, context: Context) -> Iterator[tuple[Array, ...]]:
    """The calibration samples as the file takes them, checked one by one.

    Raises:
        StageError: there are none, or one is of no use; it says which.
    """
    if context.calibration is None:
        raise StageError("int8 needs calibration data", fix="add 'data: {calibration: ...}' to the recipe")
    count = 0
    for number, values in enumerate(context.calibration.inputs(model)):
        if not all(np.isfinite(value).all() for value in values):
            raise StageError(
                f"calibration sample {number} holds NaN or infinite values",
                fix="remove the sample, or check the preprocessing",
            )
        for spec, value in zip(source.inputs, values, strict=True):
            if value.shape != spec.shape:
                # The interpreter would resize the graph without a word and calibrate another one.
                raise StageError(
                    f"calibration sample {number} has the shape {list(value.shape)}, "
                    f"input {spec.name!r} takes {list(spec.shape)}",
                    fix="check the data's layout in 'preprocessing'",
                )
        count += 1
        yield values
    if not count:
        raise StageError("the calibration data is empty", fix="give at least one sample, better 100 or more")
    if count < FEW:
        plural = "sample" if count == 1 else "samples"
        context.note(f"ranges come from {count} calibration {plural}: values that these lack will be clipped")


def extremes(content: bytes, source: Signature, values: Iterable[Sequence[Array]]) -> Ranges:
    """Least and largest value of every tensor over all samples."""
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    # The runtime's own profiler takes the same ranges 5 to 10 times faster than a walk over all tensors.
    observer = calibrator.Calibrator(
        content,
        num_threads=1,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=qsv_utils.min_max_update,
    )
    signature = next(iter(observer.get_signature_list()), None)
    recipe = recipe_manager.RecipeManager()
    for sample in values:
        named = {spec.name: value for spec, value in zip(source.inputs, sample, strict=True)}
        # One call per sample: a call with many would first collect them all in a list.
        observer.calibrate({signature: [named]}, recipe)
    ranges: Ranges = observer.get_model_qsvs()
    for tensor, ends in ranges.items():
        if not np.isfinite([ends["min"], ends["max"]]).all():
            _refuse(tensor)
    return ranges


def calibrated(
    content: bytes,
    name: str,
    values: Iterable[Sequence[Array]],
    method: Calibrator,
    percentile: float,
    levels: int,
) -> Ranges:
    """The range of every tensor by ``method``, to be covered with ``levels`` integers.

    One histogram of fixed size per tensor is all that is kept. 65,536 levels are those of 16 bits, which
    are symmetric around zero.

    Raises:
        StageError: the model computes NaN.
    """
    interpreter = tflite_interpreter.opened(content, name, keep_all=True)
    watched = list(_activations(parse(content, name)))
    histograms = {tensor: Histogram() for tensor, _ in watched}
    for sample in values:
        tflite_interpreter.feed(interpreter, sample)
        for tensor, index in watched:
            try:
                found = interpreter.get_tensor(index)
            except ValueError:  # a loop gives some of its outputs no memory, because nothing reads them
                continue
            within = np.abs(found) < LARGEST
            if np.isnan(found).any():
                _refuse(tensor)
            histograms[tensor].add(found if within.all() else found[within])
    ranges: Ranges = {}
    for tensor, histogram in histograms.items():
        if histogram.count:
            low, high = histogram.range(method, percentile=percentile, symmetric=levels > 256, levels=levels)
            ranges[tensor] = {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
    return ranges


def _activations(file: TfliteFile) -> Iterator[tuple[str, int]]:
    """Name and number of the tensors of the main graph that hold other values with every sample."""
    for tensor in graphs_of(file)[0].tensors:
        if tensor.dtype == "float32" and not tensor.is_constant:
            yield tensor.name, tensor.number


def _refuse(tensor: str) -> None:
    raise StageError(
        f"the float model computes NaN or infinite values in {tensor!r} on the calibration data",
        fix="check the preprocessing, and whether the weights are finite",
    )
