"""Bounded reading of files that may be damaged or hostile."""

import json
import struct
import tokenize
import zipfile
import zlib
from typing import Any

from edgeopt.plugin.format import MEMBERS

JSON_LIMIT = 64 << 20
"""Maximum size of a configuration in bytes; the largest public models need less than a tenth of it."""
ENTRY_LIMIT = MEMBERS
"""Maximum number of members of an archive, or of files in a folder."""
MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    EOFError,
    MemoryError,
    OverflowError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions from damaged or hostile content. RuntimeError: encrypted zip members, JSON nested too deeply.
SyntaxError, MemoryError: numpy parses array headers as Python and allocates the size that they declare."""


def member_names(archive: zipfile.ZipFile) -> set[str]:
    """Names of all members.

    Raises:
        ValueError: the archive has more than ``ENTRY_LIMIT`` members.
    """
    names = archive.namelist()
    if len(names) > ENTRY_LIMIT:
        raise ValueError(f"the archive has {len(names)} members, more than the {ENTRY_LIMIT} allowed")
    return set(names)


def json_member(archive: zipfile.ZipFile, name: str) -> Any:
    """Parse one member as JSON.

    Raises:
        ValueError: the member is not JSON, or is larger than ``JSON_LIMIT`` when unpacked.
    """
    # The size in the archive's directory may be forged, so the bound applies to the unpacked bytes.
    with archive.open(name) as file:
        return json_value(file.read(JSON_LIMIT + 1), name)


def json_value(text: bytes | str, what: str = "the configuration") -> Any:
    """Parse a text as JSON; ``what`` names it in messages.

    Raises:
        ValueError: the text is not JSON, or nested too deeply, or longer than ``JSON_LIMIT``.
    """
    if len(text) > JSON_LIMIT:
        raise ValueError(f"{what} is larger than the {JSON_LIMIT >> 20} MiB allowed")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
