"""Device descriptions, lint, Python environments and locks."""
