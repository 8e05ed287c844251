"""Suggestions for unknown names."""

import difflib
from collections.abc import Iterable

from edgeopt.errors import shortened

MAX_LISTED = 40


def nearest(name: str, known: Iterable[str]) -> str:
    """The suffix of an error message: ``; did you mean 'x'?``, or the list of known names.

    Upper and lower case are the same. Of several similar names, the one that ``name`` begins with is nearest.
    """
    names = list(known)
    lower, by_lower = name.lower(), {each.lower(): each for each in names}
    close = difflib.get_close_matches(lower, by_lower, cutoff=0.6)
    if close:
        first = next((each for each in close if lower.startswith(each)), close[0])
        return f"; did you mean {by_lower[first]!r}?"
    if not names:
        return ""
    listed = ", ".join(shortened(each, 40) for each in sorted(names)[:MAX_LISTED])
    return f"; known: {listed}" + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
