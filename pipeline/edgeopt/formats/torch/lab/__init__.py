"""Running programs for inspection: engines, runtimes, and evaluation layer by layer."""
