"""How good outputs are. One plug-in per file."""
