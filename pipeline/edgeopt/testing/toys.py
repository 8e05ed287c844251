"""Misbehaving stages, as real converters can be: they abort, hang, exhaust memory, return wrong results."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from edgeopt.errors import StageError
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Trial


class Toy(Stage):
    """Appends its mark to the bytes of its input, so that the file shows which stages ran."""

    accepts: ClassVar[frozenset[str]] = frozenset({"keras", "toy"})
    produces: ClassVar[str] = "toy"

    mark: str = "x"
    calls: Path | None = None

    def run(self, model: Model, context: Context) -> Model:
        if self.calls is not None:
            with self.calls.open("a") as file:
                file.write(self.mark)
        data = model.path.read_bytes()[-64:] if model.path.is_file() else b""
        path = context.folder / "model.toy"
        path.write_bytes(data + self.mark.encode())
        return Model(format=self.produces, path=path, inputs=model.inputs)


class Finish(Toy):
    """Writes a file that claims to be TFLite."""

    accepts: ClassVar[frozenset[str]] = frozenset({"toy", "keras"})
    produces: ClassVar[str] = "tflite"


class Await(Finish):
    """Waits until ``calls`` exists."""

    def run(self, model: Model, context: Context) -> Model:
        deadline = time.monotonic() + 60
        while self.calls is None or not self.calls.exists():
            if time.monotonic() > deadline:
                raise StageError(f"{self.calls} did not appear")
            time.sleep(0.05)
        return super().run(model, context)


class Costly(Finish):
    """Says that it takes long."""

    cost: ClassVar[int] = 9


class Abort(Toy):
    """Aborts the process, like a converter on a failed native assertion."""

    def run(self, model: Model, context: Context) -> Model:
        os.write(2, b"F0000 converter.cc:42] Check failed: rank == 4\n")
        os.kill(os.getpid(), signal.SIGABRT)
        return model


class Hang(Toy):
    """Never returns."""

    def run(self, model: Model, context: Context) -> Model:
        time.sleep(600)
        return model


class Hungry(Toy):
    """Allocates memory until it is stopped."""

    def run(self, model: Model, context: Context) -> Model:
        hoard = []
        for _ in range(4000):
            hoard.append(bytearray(os.urandom(1 << 20)))
            time.sleep(0.001)
        return model


class Refuse(Toy):
    """Fails with a `StageError`."""

    def run(self, model: Model, context: Context) -> Model:
        raise StageError("layer 'odd' cannot be converted", fix="replace it")


class Bug(Toy):
    """Fails with an unexpected exception."""

    def run(self, model: Model, context: Context) -> Model:
        raise KeyError("surprise")


class _Unpicklable(Exception):
    """Holds a lock, and cannot be created from its message alone."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


class _Mute(Exception):
    """Ends the process when it is shown."""

    def __str__(self) -> str:
        sys.exit(0)


def _raise(error: BaseException) -> None:
    raise error


def _recurse() -> None:
    _recurse()


def _daemon() -> None:
    """Start a process outside the group of this one, with nothing of its environment."""
    subprocess.Popen(["sleep", "971"], start_new_session=True, env={})


def _forked_daemon() -> None:
    """Fork twice, as daemons do: the second child leaves session, group and parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve("/bin/sleep", ["sleep", "971"], {})
        os._exit(0)


def _daemon_then_exit() -> None:
    _forked_daemon()
    time.sleep(1)
    os._exit(0)


def _daemons_then_hang() -> None:
    _daemon()
    _forked_daemon()
    time.sleep(971)


MISBEHAVIOURS: dict[str, Callable[[], object]] = {
    "exit": lambda: sys.exit(0),
    "exit with text": lambda: sys.exit("bye"),
    "os exit": lambda: os._exit(0),
    "os exit 3": lambda: os._exit(3),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "generator exit": lambda: _raise(GeneratorExit()),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "unpicklable": lambda: _raise(_Unpicklable(1, 2)),
    "mute": lambda: _raise(_Mute()),
    "long": lambda: _raise(ValueError("z" * 5_000_000)),
    "control": lambda: _raise(ValueError("\udcff\x1b[31m\x00red")),
    "recursion": _recurse,
    "pause": lambda: time.sleep(2),
    "close streams": lambda: os.closerange(0, 3),
    "close pipes": lambda: os.closerange(3, 200),
    "fork": os.fork,
    "threads": lambda: threading.Thread(target=time.sleep, args=(971,), daemon=False).start(),
    "child": lambda: subprocess.Popen(["sleep", "971"]),
    "wait for child": lambda: subprocess.run(["sleep", "971"], check=False),
    "daemon": _daemon,
    "forked daemon": _forked_daemon,
    "daemon, then os exit": _daemon_then_exit,
    "children, then os exit": lambda: (subprocess.Popen(["sleep", "971"]), os._exit(0)),
    "daemon, then hang": _daemons_then_hang,
}
"""What user code does by mistake, by name; all processes that it starts are ``sleep 971``."""


class Misbehave(Toy):
    """Does one of `MISBEHAVIOURS`, then its work."""

    how: str

    def run(self, model: Model, context: Context) -> Model:
        MISBEHAVIOURS[self.how]()
        return super().run(model, context)


class Return(Toy):
    """Returns something else than a model, or says what cannot be written."""

    what: str

    def run(self, model: Model, context: Context) -> Model:
        if self.what == "nothing":
            return None  # type: ignore[return-value]
        if self.what == "a removed folder":
            result = super().run(model, context)
            shutil.rmtree(context.folder)
            return result
        if self.what == "unpicklable":
            super().run(model, context)
            return threading.Lock()  # type: ignore[return-value]
        context.progress("\udcff\x1b[31m" + "p" * 100_000)
        context.note("\udcff\x1b[31m" + "n" * 5_000_000)
        return super().run(model, context)


class Liar(Toy):
    """Returns its input, declared as another format."""

    def run(self, model: Model, context: Context) -> Model:
        return model.model_copy(update={"format": self.produces})


class Onnx(Stage):
    """Copies an ONNX file; base class of stages that also do something wrong."""

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "onnx"

    def run(self, model: Model, context: Context) -> Model:
        path = context.folder / "model.onnx"
        path.write_bytes(model.path.read_bytes())
        return model.model_copy(update={"path": path})


class Elsewhere(Onnx):
    """Writes a file outside its folder, next to its input."""

    def run(self, model: Model, context: Context) -> Model:
        (model.path.parent / "cache.txt").write_text("mine")
        return super().run(model, context)


class Random(Onnx):
    """Writes different bytes on every call."""

    def run(self, model: Model, context: Context) -> Model:
        result = super().run(model, context)
        with result.path.open("ab") as file:
            file.write(b"\x7a\x10" + os.urandom(16))  # an unknown protobuf field
        return result


class Blind(Onnx):
    """Declares outputs that differ from those of its file."""

    def run(self, model: Model, context: Context) -> Model:
        outputs = tuple(spec.model_copy(update={"shape": (1, 7)}) for spec in model.outputs)
        return super().run(model, context).model_copy(update={"outputs": outputs})


class Ruin(Stage):
    """Sets every weight of an ONNX file to zero: the file is valid, but the model is broken."""

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "onnx"

    def run(self, model: Model, context: Context) -> Model:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(model.path)
        for tensor in graph.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if value.dtype == "float32":
                tensor.CopyFrom(numpy_helper.from_array(value * 0, tensor.name))
        path = context.folder / "model.onnx"
        onnx.save(graph, path)
        return model.model_copy(update={"path": path})


class Thin(Toy):
    """Fulfils an intent after which the model needs fine-tuning."""

    accepts: ClassVar[frozenset[str]] = frozenset({"toy"})
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"thin": frozenset({"much"})}
    needs_finetuning: ClassVar[bool] = True


class Train(Toy):
    """Reports its inputs, and resumes from its checkpoint after being killed."""

    accepts: ClassVar[frozenset[str]] = frozenset({"toy"})
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"train": frozenset({"training"})}
    after: ClassVar[frozenset[str]] = frozenset({"thin"})
    needs_training: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True

    die: bool = False

    def run(self, model: Model, context: Context) -> Model:
        assert context.source is not None
        assert context.checkpoints is not None
        assert context.training is not None
        record = context.checkpoints / "epochs"
        before = len(record.read_text()) if record.exists() else 0
        context.note(f"source {context.source.path.read_bytes()[-1:].decode()}")
        context.note(f"begun after {before} epochs, {sum(1 for _ in context.training.inputs(model))} samples")
        context.trial(Trial(name="one", size_bytes=7, drop=0.5, status="chosen"))
        for epoch in range(before + 1, 4):
            with record.open("a") as file:
                file.write("e")
            context.progress(f"epoch {epoch} of 3")
            if self.die and epoch == 2 and not before:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().run(model, context)


class Slow(Toy):
    """Reports progress for longer than the silence that a watchdog tolerates."""

    def run(self, model: Model, context: Context) -> Model:
        for second in range(8):
            context.progress(f"second {second}")
            time.sleep(1)
        return super().run(model, context)
