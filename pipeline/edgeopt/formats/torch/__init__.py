"""PyTorch modules and exported programs: reading, folding, quantizing, pruning, training."""
