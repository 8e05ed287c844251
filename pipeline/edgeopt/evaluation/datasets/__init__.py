"""Sources of samples. One plug-in per file."""
