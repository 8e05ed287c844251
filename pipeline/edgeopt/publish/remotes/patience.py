"""Timeouts and retries."""

import email.utils
import os
import random
import time
from typing import NamedTuple

from edgeopt.errors import UsageError
from edgeopt.publish.remotes.transfer import PIECE, TransientError


class Patience(NamedTuple):
    """Timeouts and delays in seconds, and the number of attempts."""

    connect: float = 10.0
    read: float = 60.0
    attempts: int = 5
    """Consecutive ones: a mebibyte of progress resets the count."""
    backoff: float = 0.5
    """Delay before the second attempt; it doubles with each further one."""
    longest: float = 30.0
    """Limit of a delay, including those that a server requests."""


def usual_patience() -> Patience:
    """The defaults, with the timeouts in ``EDGEOPT_CONNECT_TIMEOUT`` and ``EDGEOPT_READ_TIMEOUT``.

    Raises:
        UsageError: a variable is not a time in seconds.
    """
    defaults = Patience()
    return defaults._replace(
        connect=_seconds("EDGEOPT_CONNECT_TIMEOUT", defaults.connect),
        read=_seconds("EDGEOPT_READ_TIMEOUT", defaults.read),
    )


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{variable} is {text!r}, not a time in seconds", fix=f"{variable}={default:g}")
    return seconds


class Attempts:
    """Counts consecutive failures and waits longer after each."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failed = 0
        self._reached = 0

    def again(self, failure: TransientError, reached: int = 0) -> None:
        """Wait before the next attempt, or raise the final error. ``reached``: bytes received so far."""
        if reached >= self._reached + PIECE:
            self._failed = 0
            self._reached = reached
        self._failed += 1
        if self._failed >= self._patience.attempts:
            raise failure.final(self._failed) from failure
        wait = failure.wait
        if wait is None:
            # Jitter, so that clients that were rejected together do not retry together.
            wait = self._patience.backoff * 2 ** (self._failed - 1) * random.uniform(0.75, 1.25)
        time.sleep(min(wait, self._patience.longest))


def retry_after(header: str | None) -> float | None:
    """The delay of a ``Retry-After`` header in seconds; the header is a number or a date."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
