"""Signal-to-noise ratio of the outputs, with the source model's as the signal."""

from typing import ClassVar, Literal

import numpy as np

from edgeopt.errors import UsageError
from edgeopt.model import Array
from edgeopt.plugin import Metric, Score
from edgeopt.results import Kind, snr_db


class FidelitySnrDb(Metric):
    """``10 log10(sum ref^2 / sum (ref - out)^2)`` over all samples, in dB; needs no labels.

    The ratio of sums has no per-sample values. Identical outputs give 200 dB instead of infinity, outputs
    that are not finite give -200 dB.
    """

    kind: ClassVar[Kind] = "decibel"
    title: ClassVar[str] = "SNR"
    against: ClassVar[Literal["labels", "source"]] = "source"
    unit: ClassVar[str] = "dB"

    def score(self, outputs: Array, target: Array) -> Score:
        if outputs.shape != target.shape:
            raise UsageError(
                f"outputs of shape {list(outputs.shape)} cannot be compared with the source model's "
                f"of shape {list(target.shape)}",
                fix="a stage changed the output shape; use a metric that compares with labels",
            )
        reference = target.astype(np.float64)
        noise = float(np.square(reference - outputs.astype(np.float64)).sum())
        signal = float(np.square(reference).sum())
        return Score(snr_db(signal, noise))
