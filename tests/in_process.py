"""What the command line says, run in the process of the tests by the fixture ``edgeopt``."""

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    code: int
    out: str
    err: str


Edgeopt = Callable[..., Said]
