"""One hostile file: where it is, and what its refusal says."""

import sys
from pathlib import Path
from typing import NamedTuple

SECRET = Path(sys.executable).resolve()
"""A file outside every folder of the tests, which no model may read."""


class Case(NamedTuple):
    """A hostile model file or folder."""

    path: Path
    word: str
    """Part of the refusal: what was found."""
    allowed_by_trust: bool = True
    """Whether the refusal names the flag; False if the file would be useless on the device anyway."""
    refused: bool = True
    """False if edgeopt uses the harmless part of the file and says so."""
