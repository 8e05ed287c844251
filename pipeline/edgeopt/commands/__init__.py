"""One module per use case: optimize, profile, diagnose, parity, slim, reproduce, and the schemas."""
