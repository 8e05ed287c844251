"""Errors on the device, with messages that are passed on to the user."""

from __future__ import annotations

import traceback
from types import TracebackType

MESSAGE_LENGTH = 300
DETAIL_LINES = 12


class AgentError(Exception):
    """A failure with its kind: ``model``, ``runtime``, ``input`` or ``internal``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class explained:
    """Turns any exception of a runtime in the block into an ``AgentError``.

    Runtimes share no base class of exceptions: every exception has to be caught.
    """

    def __init__(self, kind: str, what: str) -> None:
        self.kind = kind
        self.what = what

    def __enter__(self) -> explained:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, AgentError):
            raise AgentError(self.kind, f"{self.what}: {one_line(error)}") from error


def refuse(
    name: str, found: list[str], trust: str = "set the runtime's option 'trust' to load it anyway"
) -> None:
    """Reject a model file that contains more than a network; ``found`` is the result of its scan.

    Raises:
        AgentError: kind ``model``: something was found.
    """
    if found:
        raise AgentError("model", f"{name} contains more than a network: {found[0][:160]}; {trust}")


def one_line(error: BaseException) -> str:
    """The first non-empty line of an exception's message, shortened."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 1] + "…"


def trace_tail(error: BaseException) -> str:
    """The last lines of the traceback."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    return "\n".join(line[:MESSAGE_LENGTH] for line in lines[-DETAIL_LINES:])
