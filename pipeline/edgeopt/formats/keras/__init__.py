"""Keras models: reading, taking apart, pruning, training."""
