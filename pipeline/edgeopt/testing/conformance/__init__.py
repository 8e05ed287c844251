"""What every plug-in of a kind keeps to: one module per kind, with one function that tests it."""
