"""Stages: conversions and optimizations of one model. One plug-in per file; shared code is in ``_*.py``."""
