"""Calibration, per-layer precision, and quantization of weights."""
