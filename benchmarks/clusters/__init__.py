"""Parts of the benchmark of clusters."""
