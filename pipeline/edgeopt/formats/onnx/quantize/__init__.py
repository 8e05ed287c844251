"""Calibration, precision per layer, quantized weights."""
