"""What turns one model into another. One plug-in per file; what several share begins with ``_``."""
