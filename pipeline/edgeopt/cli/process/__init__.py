"""The process of a command: the signals that interrupt it, and the streams that it writes to."""
