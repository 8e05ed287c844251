"""A task on a node, without the engine: what interrupts it ends all that it has started."""

import _thread
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgeopt.run.cluster import node, portable
from edgeopt.run.cluster.messages import Ended, Message, Request, Started
from edgeopt.run.store import Store

pytestmark = pytest.mark.slow


def sleeping(say: object, mark: str) -> str:
    Path(mark).write_text(str(os.getpid()))
    time.sleep(120)
    return mark


def naming(say: object, name: str) -> str:
    return name


@pytest.fixture
def request_of(tmp_path: Path) -> Iterator[Any]:
    store = Store(tmp_path / "store")
    (tmp_path / "store" / "objects").mkdir(parents=True, exist_ok=True)

    def made(key: str, function: Any, argument: str) -> Request:
        payload = portable.dump((function, (argument,), None), store, tmp_path, None)
        about = {"versions": {}, "threads": {}, "memory_limit": None, "too_long": "", "minutes": 5}
        place: dict[str, Any] = {"store": str(store.root), "board": None, "patience": 1, "gpu": False}
        return Request(key=key, title=key, payload=payload, worker="plain", **about, **place)

    yield made
    node._end_all()


def begun(messages: Iterator[Message], mark: Path) -> psutil.Process:
    assert isinstance(next(messages), Started)
    for _ in range(600):
        if mark.exists() and (text := mark.read_text()):
            return psutil.Process(int(text))
        time.sleep(0.1)
    raise AssertionError("the task has not begun")


def ended(process: psutil.Process) -> bool:
    return psutil.wait_procs([process], timeout=20)[1] == []


def test_an_interrupt_between_two_messages_ends_the_task(request_of: Any, tmp_path: Path) -> None:
    messages = node.serve(request_of("one", sleeping, str(tmp_path / "mark")))
    process = begun(messages, tmp_path / "mark")
    # The engine is passing a message on: the generator is suspended, and its frame lives on.
    with pytest.raises(KeyboardInterrupt):
        _thread.interrupt_main()
        time.sleep(5)
    assert ended(process)
    assert [*node.serve(request_of("two", naming, "a"))][-1].value == "a"
    messages.close()


def test_a_task_that_was_left_is_not_the_next_one(request_of: Any, tmp_path: Path) -> None:
    messages = node.serve(request_of("one", sleeping, str(tmp_path / "mark")))
    process = begun(messages, tmp_path / "mark")
    last = [*node.serve(request_of("two", naming, "a"))][-1]
    assert isinstance(last, Ended) and last.value == "a"
    assert ended(process)
    messages.close()
