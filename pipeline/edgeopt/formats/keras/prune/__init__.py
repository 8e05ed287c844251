"""Channel and weight pruning."""
