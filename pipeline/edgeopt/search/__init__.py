"""Searches for the best variants: what may vary, which candidates are tried, and the Pareto front."""
