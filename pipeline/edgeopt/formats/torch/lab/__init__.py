"""Running programs to look inside: engines, runtimes, layer by layer."""
