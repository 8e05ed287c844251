"""Datasets and decoders of user code, run in a process of their own.

Whatever such code does, from ``sys.exit`` to a crash in native code, ends that process only, and becomes an
error with a reason. All of a recipe share one process, so that a framework is imported once.
"""

import contextlib
import itertools
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from pydantic import PrivateAttr

from edgeopt.config.references import Code
from edgeopt.config.text import log_tail, reason_of
from edgeopt.devices.descendants import descendants, end, end_with, lead_group, mute_resource_tracker
from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.evaluation.samples import title
from edgeopt.model import Outputs
from edgeopt.plugin import Dataset, Decoder, Plugin, Sample

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BATCH_BYTES = 4 << 20
"""Size of the samples that are sent at once."""
POLL_SECONDS = 0.2


def runs_user_code(plugin: Plugin) -> bool:
    """Whether a plugin is not shipped, or refers to a function of the user."""
    return not type(plugin).__module__.startswith("edgeopt.") or any(
        isinstance(value, Code) or (isinstance(value, Plugin) and runs_user_code(value))
        for _, value in plugin
    )


class Reader:
    """A process that reads datasets and decodes; it starts on first use, and again after it has died.

    ``minutes``: the longest time until the next samples, or for decoding.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._numbers = itertools.count()
        self._connection: Connection | None = None
        self._process: Any = None
        self._log = Path()
        self._family: set[psutil.Process] = set()
        """What it has started, as far as seen."""
        self._end: Any = None

    def samples(self, dataset: Dataset) -> Iterator[Sample]:
        """The samples of a dataset.

        Raises:
            DataError: its code failed, exited or crashed.
        """
        number, name = next(self._numbers), title(dataset)
        self._ask(name, "open", number, dataset)
        try:
            while batch := self._ask(name, "next", number):
                yield from batch
        finally:
            if self._connection is not None:
                with contextlib.suppress(DataError):
                    self._ask(name, "close", number)

    def digest(self, dataset: Dataset) -> str:
        """The digest of a dataset; raises as ``samples``."""
        digest: str = self._ask(title(dataset), "digest", 0, dataset)
        return digest

    def decoded(self, decoder: Decoder, outputs: Outputs) -> Outputs:
        """What a decoder makes of outputs; raises as ``samples``, and UsageError as the decoder does."""
        result: Outputs = self._ask("postprocess", "decode", 0, decoder, outputs)
        return result

    def _ask(self, name: str, *request: Any) -> Any:
        connection = self._connection or self._start()
        try:
            connection.send(request)
            if not self._answered(connection):
                raise DataError(
                    f"{name}: no answer for {self._minutes:g} minutes", fix="raise limits.stage_minutes"
                )
            failure, value = connection.recv()
        except (EOFError, OSError) as error:
            raise DataError(f"{name}: {self._death()}", fix="correct its code") from error
        except BaseException:
            self._stop()  # its answer would be taken for that to the next request
            raise
        if failure is not None:
            raise failure(f"{name}: {value[0]}" if failure is DataError else value[0], fix=value[1])
        return value

    def _answered(self, connection: "Connection") -> bool:
        """Wait for an answer; False if there is none in time.

        Raises:
            EOFError: the process has died. Its end of the pipe may still be open in a child of it.
        """
        deadline = time.monotonic() + self._minutes * 60
        while not connection.poll(POLL_SECONDS):
            if not self._process.is_alive() and not connection.poll(0):
                raise EOFError
            with contextlib.suppress(psutil.Error):
                self._family.update(descendants(psutil.Process(self._process.pid)))
            if time.monotonic() > deadline:
                return False
        return True

    def _start(self) -> "Connection":
        import multiprocessing
        from multiprocessing.util import Finalize

        mute_resource_tracker()
        context = multiprocessing.get_context("spawn")
        descriptor, log = tempfile.mkstemp(prefix="edgeopt-data-", suffix=".log")
        os.close(descriptor)
        self._log = Path(log)
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, os.getpid(), self._log))
        self._process.start()
        other.close()
        # Before multiprocessing waits for its processes at exit, and when the recipe is no longer used.
        self._family = set()
        parts = (self._connection, self._process, self._log, self._family)
        self._end = Finalize(self, _end, parts, exitpriority=10)
        return self._connection

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._connection = self._end = None

    def _death(self) -> str:
        self._process.join(2)
        code = self._process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        tail = log_tail(self._log)
        self._stop()
        return f"its process died with {how}" + (f"\n{tail}" if tail else "")


class Isolated(Dataset):
    """A dataset whose samples and digest are computed in the process of a `Reader`.

    Pickled, for the process of a stage, it is the dataset itself.
    """

    inner: Dataset
    _reader: Reader = PrivateAttr()
    _digest: str = PrivateAttr("")

    @classmethod
    def of(cls, dataset: Dataset, reader: Reader) -> "Isolated":
        made = cls(inner=dataset)
        made._reader = reader
        return made

    def samples(self) -> Iterator[Sample]:
        return self._reader.samples(self.inner)

    def digest(self) -> str:
        self._digest = self._digest or self._reader.digest(self.inner)
        return self._digest

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.inner,)


class IsolatedDecoder(Decoder):
    """A decoder that runs in the process of a `Reader`; pickled, it is the decoder itself."""

    inner: Decoder
    _reader: Reader = PrivateAttr()

    @classmethod
    def of(cls, decoder: Decoder, reader: Reader) -> "IsolatedDecoder":
        made = cls(inner=decoder)
        made._reader = reader
        return made

    def apply(self, outputs: Outputs) -> Outputs:
        return self._reader.decoded(self.inner, outputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.inner,)


P = TypeVar("P", bound=Plugin)


def _itself(plugin: P) -> P:
    return plugin


def _end(connection: "Connection", process: Any, log: Path, family: set[psutil.Process]) -> None:
    connection.close()
    end(process.pid, family)
    process.join()
    log.unlink(missing_ok=True)


def _serve(connection: "Connection", parent: int, log: Path) -> None:
    """Answer requests with ``(None, value)`` or ``(error type, (message, fix))`` until the parent is gone."""
    lead_group()
    end_with(parent)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    me, opened = os.getpid(), dict[int, Iterator[Sample]]()
    with contextlib.suppress(EOFError):
        while True:
            request = connection.recv_bytes()
            reply = _answer(request, opened)
            if os.getpid() != me:
                os._exit(0)  # user code has forked, and its child has returned
            connection.send_bytes(reply)


def _answer(request: bytes, opened: dict[int, Iterator[Sample]]) -> bytes:
    try:
        what, number, *given = pickle.loads(request)
        return pickle.dumps((None, _ANSWERS[what](opened, number, *given)))
    except EdgeoptError as error:
        kind = UsageError if isinstance(error, UsageError) else DataError
        return pickle.dumps((kind, (error.message, error.fix)))
    except BaseException as error:  # noqa: BLE001 - where the failure of user code becomes a result
        return pickle.dumps((DataError, (reason_of(error), "correct its code")))


def _open(opened: dict[int, Iterator[Sample]], number: int, dataset: Dataset) -> None:
    opened[number] = iter(dataset.samples())


def _next(opened: dict[int, Iterator[Sample]], number: int) -> list[Sample]:
    batch: list[Sample] = []
    size = 0
    for sample in opened[number]:
        batch.append(sample)
        size += sum(value.nbytes for value in sample.inputs)
        if size >= BATCH_BYTES:
            break
    return batch


def _close(opened: dict[int, Iterator[Sample]], number: int) -> None:
    opened.pop(number, None)


def _digest(opened: dict[int, Iterator[Sample]], number: int, dataset: Dataset) -> str:
    return dataset.digest()


def _decode(opened: dict[int, Iterator[Sample]], number: int, decoder: Decoder, outputs: Outputs) -> Outputs:
    return decoder.apply(outputs)


_ANSWERS: dict[str, Any] = {
    "open": _open,
    "next": _next,
    "close": _close,
    "digest": _digest,
    "decode": _decode,
}
