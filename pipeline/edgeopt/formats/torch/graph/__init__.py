"""The network as a graph: layers, their names, and changes that keep the outputs."""
