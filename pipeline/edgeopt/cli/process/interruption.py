"""SIGINT, SIGTERM and SIGHUP end a command in the same way: it cleans up, prints one line and exits with 130.

The first signal raises ``Interrupted``, and further ones are ignored: runners of CI jobs send several,
which must not interrupt the clean-up. A signal that the parent process ignores (``nohup``) stays ignored.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEANUP_SECONDS = 8.0
"""Time for the clean-up; CI runners wait 7.5 s or more before they kill a job."""
RETRY_SECONDS = 0.01


class Interrupted(KeyboardInterrupt):
    """A signal arrived.

    Not ``KeyboardInterrupt`` itself: if it passes through ``exec`` of a text, as in a dataclass that is just
    being defined, CPython ends with SIGINT instead of the exit code, even if it is handled later.
    """


class _State:
    listening = False
    happened = False
    steps: set[tuple[str, str]] = set()  # noqa: RUF012 - the state of the process, not of an object
    ending = ""


def listen() -> None:
    """Let the signals interrupt the process from now on."""
    _State.happened = False
    _State.steps = set()
    _State.ending = ""
    with contextlib.suppress(ValueError):  # not in the main thread, where no handler can be set
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _on_signal)
        signal.signal(signal.SIGALRM, _on_signal)
        sys.unraisablehook = _on_unraisable
        _State.listening = True


def stop_listening() -> None:
    """Ignore signals from now on."""
    _State.listening = False


def finish() -> None:
    """Ignore signals until the process has ended: the interpreter restores default actions, but not these."""
    with contextlib.suppress(ValueError):
        for number in (*SIGNALS, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)


def happened() -> bool:
    """Whether a signal interrupted the process."""
    return _State.happened


def keep_step(branch: str, step: str) -> None:
    """Count a step whose result is in the store."""
    _State.steps.add((branch, step))


def ends_with(line: str) -> None:
    """Say this after an interruption, which is the usual end of a command that keeps no steps."""
    _State.ending = line


def message() -> str:
    """The line that is printed after an interruption."""
    kept = f"interrupted; {len(_State.steps)} steps are kept, run the same command again"
    return _State.ending or kept


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _State.listening:
        _State.listening, _State.happened = False, True
        signal.setitimer(signal.ITIMER_REAL, CLEANUP_SECONDS)
        raise Interrupted
    if number == signal.SIGALRM and _State.happened:
        _give_up()


def _give_up() -> NoReturn:
    """End a process whose clean-up hangs; the next run removes what is left."""
    os.write(2, f"{message()}\n".encode())
    os._exit(INTERRUPTED)


def _on_unraisable(unraisable: Any) -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt) and _State.happened:
        # A finalizer was running, which swallows exceptions: raise it again a moment later.
        _State.listening = True
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
    else:
        sys.__unraisablehook__(unraisable)
