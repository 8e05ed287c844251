"""Keras models: reading, graph traversal, pruning, clustering, training."""
