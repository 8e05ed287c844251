"""Text of unknown origin, made fit for terminals, JSON and reports."""

import re

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""A terminal's control sequence, such as a colour (ECMA-48, section 5.4)."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and line feed, and surrogates, which UTF-8 cannot encode."""


def printable(text: str, limit: int) -> str:
    """``text`` without control characters and surrogates, cut with a mark after ``limit`` characters."""
    shown = _UNPRINTABLE.sub("?", _ESCAPE.sub("", text[:limit].replace("\r\n", "\n")))
    return shown if len(text) <= limit else f"{shown} …"
