"""Reading files that may be damaged or hostile: never more of them than a real model would need."""

import json
import struct
import tokenize
import zipfile
import zlib
from typing import Any

from edgeopt.plugin.format import MEMBERS

JSON_LIMIT = 64 << 20
"""Bytes of configuration that are read; the largest public models stay under a tenth of it."""
ENTRY_LIMIT = MEMBERS
"""Members of an archive, or files of a folder."""
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
"""What reading damaged or hostile content raises: zipfile answers an encrypted member, and json too deep a
nesting, with a RuntimeError; numpy reads the header of an array as Python, and allocates what that says."""


def member_names(archive: zipfile.ZipFile) -> set[str]:
    """Names of all members.

    Raises:
        ValueError: there are more than ``ENTRY_LIMIT``.
    """
    names = archive.namelist()
    if len(names) > ENTRY_LIMIT:
        raise ValueError(f"the archive has {len(names)} members, more than the {ENTRY_LIMIT} allowed")
    return set(names)


def json_member(archive: zipfile.ZipFile, name: str) -> Any:
    """The JSON value in one member.

    Raises:
        ValueError: it is no JSON, or unpacks to more than ``JSON_LIMIT`` whatever the archive's
            directory claims.
    """
    with archive.open(name) as file:
        return json_value(file.read(JSON_LIMIT + 1), name)


def json_value(text: bytes | str, what: str = "the configuration") -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: it is no JSON, or longer than ``JSON_LIMIT``.
    """
    if len(text) > JSON_LIMIT:
        raise ValueError(f"{what} is larger than the {JSON_LIMIT >> 20} MiB allowed")
    return json.loads(text)
