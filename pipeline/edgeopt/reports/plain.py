"""Sanitizing of untrusted text for terminals, XML and HTML."""

import re

_CONTROL = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Replace control characters: they move a terminal's cursor and are invalid in XML."""
    return _CONTROL.sub("�", text)
