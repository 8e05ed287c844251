"""Connections to devices, one plug-in per file."""
