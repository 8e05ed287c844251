"""Tasks: what the outputs of a model mean. One module per task."""
