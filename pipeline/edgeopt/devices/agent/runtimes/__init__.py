"""One file per runtime, each with one class ``Session``; the file name is the runtime's name."""
