"""Models as two files: ``.layers`` lists the operators, ``.weights`` holds their numbers."""
