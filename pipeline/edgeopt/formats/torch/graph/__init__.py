"""The network as a graph: its layers, their names, and rewrites that preserve the outputs."""
