"""Rewriting of graphs into operators that litert-torch converts exactly, and search for refused ones."""
