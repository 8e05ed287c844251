"""Signal-to-noise ratio of outputs against a reference."""

import math

MAX_SNR_DB = 200.0
"""Value for the absence of noise; its negative is the value for outputs that are not finite."""


def snr_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` of two energies (sums of squares), clipped to -200 to 200 dB."""
    if noise == 0:
        return MAX_SNR_DB
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -MAX_SNR_DB
    return max(-MAX_SNR_DB, min(MAX_SNR_DB, 10 * math.log10(max(signal, 1e-300) / noise)))
