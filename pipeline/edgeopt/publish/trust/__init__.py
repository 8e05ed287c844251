"""Whether an artifact is what it should be: signatures, where it comes from, what it is made of."""
