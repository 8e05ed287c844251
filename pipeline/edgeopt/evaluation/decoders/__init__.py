"""Decoders of raw heads. One module per kind of head."""
