"""Divisions that have no int8 form: by values near zero."""

from contextlib import suppress

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile
from edgeopt.formats.tflite.quantize.calibration import calibrated
from edgeopt.formats.tflite.quantize.quantizer import Ranges

STEPS, LEVELS = 16, 255
"""A denominator is at least ``STEPS`` of the ``LEVELS`` steps of its range away from zero."""


def fragile_divisions(file: TfliteFile, ranges: Ranges) -> list[str]:
    """The outputs of the divisions whose denominator comes near zero, on the calibration data or for zeros.

    Its int8 value would be the zero point, for which the kernel fails at run time; shortly before, a step of
    the denominator changes the quotient by a large factor. Zeros, such as silence, are an input that every
    model meets.
    """
    graph = graphs_of(file)[0]
    divisions = [operation for operation in graph.operations if operation.kind == "DIV"]
    denominators = {each.present[1].name for each in divisions if not each.present[1].is_constant}
    zeros: Ranges = {}
    if denominators and all(tensor.dtype != "string" for tensor in graph.inputs):
        sample = [np.zeros(tensor.shape, tensor.dtype) for tensor in graph.inputs]
        with suppress(StageError):  # NaN: no range, and so no int8
            found = calibrated(file.content, file.name, [sample], "minmax", 100, 256, only=denominators)
            zeros = found.ranges
    return [
        operation.outputs[0].name
        for operation in divisions
        if operation.present[1].name in denominators
        and not all(_far_from_zero(operation.present[1].name, found) for found in (ranges, zeros))
    ]


def _far_from_zero(tensor: str, ranges: Ranges) -> bool:
    if tensor not in ranges:
        return False
    low, high = (float(np.ravel(ranges[tensor][end])[0]) for end in ("min", "max"))
    if high < 0:
        low, high = -high, -low
    return low > 0 and low * LEVELS >= high * STEPS
