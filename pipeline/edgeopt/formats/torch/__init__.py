"""PyTorch modules and exported programs: reading, graph rewriting, quantization, pruning and training."""
