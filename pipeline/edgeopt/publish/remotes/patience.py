"""How long to wait for a server, and how often to try."""

import email.utils
import os
import random
import time
from typing import NamedTuple

from edgeopt.errors import UsageError
from edgeopt.publish.remotes.transfer import PIECE, TransientError


class Patience(NamedTuple):
    """How long to wait, in seconds, and how often to try."""

    connect: float = 10.0
    read: float = 60.0
    attempts: int = 5
    """In a row, without a mebibyte of progress between them."""
    backoff: float = 0.5
    """Before the second attempt; it doubles with each."""
    longest: float = 30.0
    """Between two attempts, whatever a server asks for."""


def usual_patience() -> Patience:
    """As ``EDGEOPT_CONNECT_TIMEOUT`` and ``EDGEOPT_READ_TIMEOUT`` say.

    Raises:
        UsageError: one of them is no time in seconds.
    """
    usual = Patience()
    return usual._replace(
        connect=_seconds("EDGEOPT_CONNECT_TIMEOUT", usual.connect),
        read=_seconds("EDGEOPT_READ_TIMEOUT", usual.read),
    )


def _seconds(variable: str, usual: float) -> float:
    text = os.environ.get(variable) or str(usual)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{variable} is {text!r}, not a time in seconds", fix=f"{variable}={usual:g}")
    return seconds


class Attempts:
    """Counts what went wrong in a row, and waits a little longer each time."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failed = 0
        self._reached = 0

    def again(self, failure: TransientError, reached: int = 0) -> None:
        """Wait before the next attempt. Raises the failure when there were enough."""
        if reached >= self._reached + PIECE:
            self._failed = 0
            self._reached = reached
        self._failed += 1
        if self._failed >= self._patience.attempts:
            raise failure.final(self._failed) from failure
        wait = failure.wait
        if wait is None:
            # Many that were turned away at once must not all come back at once.
            wait = self._patience.backoff * 2 ** (self._failed - 1) * random.uniform(0.75, 1.25)
        time.sleep(min(wait, self._patience.longest))


def asked_wait(header: str | None) -> float | None:
    """What ``Retry-After`` says, in seconds; it may be a number or a date."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
