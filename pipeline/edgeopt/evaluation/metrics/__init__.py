"""Metrics of the outputs. One plug-in per file."""
