"""Evaluation, free of side effects: samples, statistics, comparisons, gates, baselines, diagnosis."""
