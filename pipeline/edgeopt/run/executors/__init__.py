"""One file per executor."""
