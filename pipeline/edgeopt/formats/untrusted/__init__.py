"""What a model file would run, read or write if it were loaded, found without loading it.

Each module scans one kind of file and returns what it found, in the words of a message; an empty list means
that loading the file only computes. Names are compared with a list of what is allowed, because the functions
that a framework offers grow with every version. The formats scan before they load, and so does the agent on
the device: the modules are packed into it, so they need Python 3.8 and the standard library only, and import
each other relatively.
"""

BY_TRUST = "if you trust the origin of the file, set model.trust: true (on the command line, --trust)"
"""The fix that every refusal offers."""
