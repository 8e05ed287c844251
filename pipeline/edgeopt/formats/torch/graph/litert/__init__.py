"""Rewriting of graphs into operators that litert-torch converts exactly."""
