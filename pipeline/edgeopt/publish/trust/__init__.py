"""Trust in artifacts: signatures, provenance and bills of materials."""
