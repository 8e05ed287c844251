"""Suggestions for unknown names."""

import difflib
from collections.abc import Iterable

from edgeopt.errors import shortened

MAX_LISTED = 20


def nearest(name: str, known: Iterable[str]) -> str:
    """The suffix of an error message: ``; did you mean 'x'?``, or the list of known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not names:
        return ""
    listed = ", ".join(shortened(each, 40) for each in sorted(names)[:MAX_LISTED])
    return f"; known: {listed}" + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
