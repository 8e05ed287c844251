"""Reading and writing `.keras`, `.h5` and SavedModel files."""
