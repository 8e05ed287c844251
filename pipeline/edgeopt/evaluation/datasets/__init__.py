"""Where samples come from. One plug-in per file."""
