"""The network as a graph: layers, layer names, and transformations that preserve the outputs."""
