"""A Ray cluster on loopback, each node at an address of its own, and a recipe with slow steps for it."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from edgeopt.devices.descendants import end
from edgeopt.recipe.plan import Built
from edgeopt.results import Event

START_SECONDS = 180
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-c")
"""Runs a command with a view of its own of the file system; not every machine allows it."""
STAGES = '''
"""Stages of a project."""

import os
import time
from pathlib import Path
from typing import ClassVar

from edgeopt.errors import StageError
from edgeopt.plugin import Stage


class Step(Stage):
    """Notes its process in ``marks``, sleeps, and appends its name to the file.

    ``ballast``: bytes of a file beside it. SLOW_STEPS in the environment of a node: seconds that it adds.
    """

    requires: ClassVar[tuple[str, ...]] = ("onnx",)
    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "onnx"

    name: str
    marks: str
    seconds: float = 0
    ballast: int = 0
    fails: bool = False

    def run(self, model, context):
        with Path(self.marks, self.name).open("a") as file:
            file.write(f"{os.getpid()} {os.getppid()} {int(time.time())}\\\\n")
        time.sleep(self.seconds + float(os.environ.get("SLOW_STEPS", 0)))
        if self.fails:
            raise StageError("it fails on purpose")
        if self.ballast:
            piece = self.name.encode().ljust(1 << 20)
            with (context.folder / "ballast").open("wb") as file:
                for _ in range(self.ballast >> 20):
                    file.write(piece)
        path = context.folder / "net.onnx"
        # Field 2 of a ModelProto, the name of its producer: the file stays valid.
        path.write_bytes(model.path.read_bytes() + b"\\\\x12" + bytes([len(self.name)]) + self.name.encode())
        return model.model_copy(update={"path": path})


class Train(Step):
    """A step that computes on a GPU."""

    uses_gpu: ClassVar[bool] = True
'''.replace("\\\\", "\\")


class Node(NamedTuple):
    process: "subprocess.Popen[str]"
    name: str

    def runs(self, process: int) -> bool:
        """Whether a process is one of this node."""
        return process in {each.pid for each in psutil.Process(self.process.pid).children(recursive=True)}

    def kill(self) -> None:
        """End it as a machine ends that loses its power."""
        self.process.send_signal(signal.SIGSTOP)
        for each in psutil.Process(self.process.pid).children():
            end(each.pid)
        self.process.kill()
        self.process.wait()


def token() -> str:
    return secrets.token_hex(32)


@contextmanager
def node(
    *arguments: str, name: str, without: Path | None = None, size: str = "50%", **variables: str
) -> Iterator[Node]:
    """A node that ``edgeopt node`` starts, once it is ready.

    For it, the folder ``without`` is an empty file system of ``size``.
    """
    mount = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    hiding = [] if without is None else [*NAMESPACE, mount, str(without)]
    process = subprocess.Popen(
        [*hiding, sys.executable, "-m", "edgeopt", "node", *arguments, "--name", name],
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    ready = process.stderr.readline()
    try:
        assert "it ends with Ctrl-C" in ready, ready + process.stderr.read()
        yield Node(process, name)
    finally:
        process.terminate()
        process.wait(START_SECONDS)
        process.stderr.close()


def write_recipe(
    folder: Path, length: int = 1, module: str = "steps_of_project", **steps: dict[str, object]
) -> Path:
    """A recipe with a variant of each step, ``length`` times in a row; they write ``folder/marks``.

    A step whose name begins with ``train`` is one that computes on a GPU.
    """
    from onnx import TensorProto, helper, save

    (folder / "marks").mkdir(exist_ok=True)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "net.onnx")
    (folder / f"{module}.py").write_text(STAGES)
    lines = ["version: 1", "name: steps", "model: {path: net.onnx}", "formats: [onnx]", "optimize:"]
    for name, options in steps.items():
        given = {"name": name, "marks": str(folder / "marks")} | options
        kind = "Train" if name.startswith("train") else "Step"
        stages = [f"{{uses: '{module}:{kind}', with: {given!r}}}"] * length
        lines.append(f"  {name}: {{stages: [{', '.join(stages)}]}}")
    path = folder / "recipe.yaml"
    path.write_text("\n".join(lines).replace("True", "true") + "\n")
    return path


def marks(folder: Path, name: str) -> list[list[int]]:
    """The processes that have run a step, each with its parent, and the time by the clock of its node."""
    file = folder / "marks" / name
    lines = file.read_text().splitlines() if file.exists() else []
    return [[int(number) for number in line.split()] for line in lines]


def await_marks(folder: Path, name: str, count: int, seconds: float = 180) -> list[int]:
    """What is noted of the ``count``-th run of a step, once it has begun; see `marks`."""
    deadline = time.monotonic() + seconds
    while len(found := marks(folder, name)) < count:
        assert time.monotonic() < deadline, f"{name} has run {len(found)} times"
        time.sleep(0.05)
    return found[count - 1]


def await_end(*processes: int, seconds: float = 20) -> None:
    """Wait until processes are gone."""
    deadline = time.monotonic() + seconds
    while any(map(_alive, processes)):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def digests(builds: list[Built]) -> dict[str, list[str]]:
    assert [built.failure for built in builds if built.failure] == []
    return {built.branch.name: [step.digest for step in built.steps] for built in builds}


def lines(events: list[Event], status: str = "note") -> str:
    return "\n".join(event.message for event in events if event.status == status)
