"""stdout and stderr that are closed, full or non-blocking, or whose encoding lacks some characters."""

import codecs
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from edgeopt.errors import CannotRunError

ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "·": "-", "▸": ">", "–": "-", "−": "-", "÷": "/", "×": "x", "±": "+-", "≤": "<="}
    | {"≥": ">=", "→": "->", "…": "...", "Δ": "d", "σ": "sigma", "²": "^2", "µ": "u"}
)
"""Replacements for an encoding without these characters."""
READABLE = "edgeopt.readable"


def open_all() -> None:
    """Make stdout and stderr safe to write to; does nothing to streams that a caller has replaced."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise, the next opened file would be stdout. The lowest free number is assigned.
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(READABLE, _readable)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(2, sys.stderr)


def _text(number: int, original: TextIO | None) -> TextIO:
    raw = _Output(number, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=original.encoding if original is not None else "utf-8",
        errors=READABLE,
        line_buffering=number == 2 or raw.isatty(),
    )


class _Output(io.FileIO):
    """A standard stream.

    If its reader is gone, as in ``edgeopt plan | head -1``, the rest is dropped, and the command still ends
    with its own exit code. So is everything that cannot be written to stderr.
    """

    def write(self, data: Any, /) -> int:
        """Write bytes, and wait while a non-blocking pipe is full.

        Raises:
            CannotRunError: stdout cannot be written, such as a file on a full disk.
        """
        try:
            while (written := super().write(data)) is None:
                select.select([], [self.fileno()], [])
        except OSError as error:
            # Otherwise, the interpreter would try again at exit, and fail with a code of its own.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() == 1 and error.errno != errno.EPIPE:
                raise CannotRunError(
                    f"cannot write the result to stdout: {error.strerror}",
                    fix="redirect it to a file on a disk with enough space",
                ) from error
            return len(data)
        return written


def _readable(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: similar ASCII characters, otherwise escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end
