"""Text of unknown origin, made fit for terminals, JSON and reports."""

import re
from pathlib import Path

from edgeopt.config.chatter import without_chatter

MAX_REASON_CHARS = 4000
LOG_LINES, LINE_CHARS = 12, 300

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""A terminal's control sequence, such as a colour (ECMA-48, section 5.4)."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and line feed, and surrogates, which UTF-8 cannot encode."""


def printable(text: str, limit: int) -> str:
    """``text`` without control characters and surrogates, cut with a mark after ``limit`` characters."""
    shown = _UNPRINTABLE.sub("?", _ESCAPE.sub("", text[:limit].replace("\r\n", "\n")))
    return shown if len(text) <= limit else f"{shown} …"


def reason_of(error: BaseException) -> str:
    """Why user code failed, in bounded length; the exception itself may be unfit to be shown or pickled."""
    if isinstance(error, SystemExit):
        code = error.code or 0
        how = f" with exit code {code}" if isinstance(code, int) else f": {message_of(error)}"
        return printable(f"it exited its process{how}", MAX_REASON_CHARS)
    return printable(f"{type(error).__name__}: {message_of(error)}", MAX_REASON_CHARS)


def as_name(text: str) -> str:
    """The nearest valid name of a release: lowercase letters and digits, joined with '-'."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return slug[:60].rstrip("-") or "model"


def log_tail(log: Path) -> str:
    """The last lines of a log that say something, indented."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join("  | " + printable(line, LINE_CHARS) for line in without_chatter(lines)[-LOG_LINES:])


def message_of(error: BaseException) -> str:
    """The message of an exception of user code, or why it has none."""
    try:
        return str(error)
    except BaseException as failure:  # noqa: BLE001 - a method of user code
        return f"no message: its __str__ raised {type(failure).__name__}"
