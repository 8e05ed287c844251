"""One module per thing that a user asks for, told in order: optimize, profile, diagnose, reproduce."""
