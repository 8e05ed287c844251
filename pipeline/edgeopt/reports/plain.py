"""Text that came from elsewhere, made harmless for whatever shows it."""

import re

_CONTROL = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Without control characters: they would move a terminal's cursor, and XML cannot hold them."""
    return _CONTROL.sub("�", text)
