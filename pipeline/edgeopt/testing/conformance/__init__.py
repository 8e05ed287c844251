"""Contracts of the plug-in kinds: one module per kind, with one function that tests a plug-in."""
