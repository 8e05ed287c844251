"""One module per use case: optimize, plan, profile, diagnose, parity, slim, reproduce, and the schemas."""
