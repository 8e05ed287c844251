"""Pure judging: samples, statistics, comparison of outputs and layers, gates, baselines, diagnosis."""
