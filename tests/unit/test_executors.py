"""Where stages run, and tasks on their way to a machine that has none of their files."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgeopt.config.references import Code
from edgeopt.errors import MissingPackageError, StageError, StoreError, UsageError
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.model import Model
from edgeopt.results import Event
from edgeopt.run.cluster import ray_settings
from edgeopt.run.cluster.node import other_versions
from edgeopt.run.cluster.portable import AbsentError, Outside, Source, Stored, dump, load, supply
from edgeopt.run.executors import choice
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.store import Store, store_place

KEY = "a" * 64


@contextmanager
def executing(on: str | None) -> Iterator[list[Event]]:
    events: list[Event] = []
    with choice.executing(on, "store", events.append):
        yield events


def test_a_file_is_an_executor() -> None:
    assert choice.known() == ("local", "ray")


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("rey", "no executor 'rey'; did you mean 'ray'"),
        ("executor", "no executor 'executor'"),
        ("local:somewhere", "this machine has no address"),
        ("ray:somewhere", "'somewhere' is not the address of a Ray cluster"),
    ],
)
def test_what_is_no_executor_is_refused(on: str, message: str) -> None:
    with pytest.raises(UsageError, match=message), executing(on):
        pass


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "nonsense")
    with pytest.raises(UsageError, match="nonsense"), executing(None):
        pass
    with executing("local"), choice.executor_for(5) as executor:
        assert isinstance(executor, LocalExecutor)
        assert executor.memory_limit == 5


def test_an_executor_serves_several_commands() -> None:
    with LocalExecutor() as kept, choice.using(kept):
        for limit in (5, 7):
            with executing(None), choice.executor_for(limit) as executor:
                assert executor is kept and kept.memory_limit == limit
    with choice.executor_for(None) as executor:
        assert executor is not kept


def test_without_the_extra_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    assert not ray_settings.installed()
    with pytest.raises(MissingPackageError, match=r"cluster\]"), executing("ray"):
        pass


def test_a_local_run_does_not_import_ray() -> None:
    script = (
        "import sys\n"
        "import edgeopt.commands.optimize, edgeopt.commands.search\n"
        "from edgeopt.run.executors import choice\n"
        "with choice.executing('local', 'store', print), choice.executor_for(None):\n"
        "    choice.known()\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in ('ray', 'msgpack')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A project with a model, a data set and code, and a store."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(b"weights")
    np.savez(folder / "data.npz", x=np.arange(3))
    (folder / "helper_of_net.py").write_text("VALUE = 7\n")
    (folder / "factory_of_net.py").write_text(
        "from helper_of_net import VALUE\n\ndef build():\n    return VALUE\n\nclass Option:\n    pass\n"
    )
    return folder


def sent(content: object, here: Path, store: Store, code: Code | None = None) -> bytes:
    return dump(content, store, here / "scratch", code)


def moved(here: Path) -> Path:
    """The project on a machine that has nothing in its place."""
    return here.rename(here.parent / "elsewhere")


def test_files_in_the_store_travel_by_key(here: Path, tmp_path: Path) -> None:
    mine = Store(tmp_path / "mine")
    with mine.scratch() as folder:
        (folder / "net.onnx").write_bytes(b"weights")
        entry = mine.put(KEY, folder, {})
    model = Model(format="onnx", path=entry.folder / "net.onnx")
    data = sent((model, mine.checkpoints(KEY), here / "scratch"), here, mine)
    assert b"weights" not in data
    assert str(tmp_path).encode() not in data
    theirs = Store(tmp_path / "theirs")
    with pytest.raises(AbsentError) as caught:
        load(data, theirs, tmp_path / "work")
    assert caught.value.absent == (Stored(KEY, ("net.onnx",)),)
    with pytest.raises(StoreError, match="let all machines use one store"):
        supply(caught.value.absent[0], mine)
    shutil.copytree(mine.root / "objects", theirs.root / "objects", dirs_exist_ok=True)
    received, checkpoints, work = load(data, theirs, tmp_path / "work")
    assert received.path == theirs.root / "objects" / KEY[:2] / KEY / "files" / "net.onnx"
    assert (checkpoints, work) == (theirs.root / "checkpoints" / KEY, tmp_path / "work")


def test_files_outside_travel_only_where_they_are_absent(here: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    data = sent(Npz(path=here / "data.npz"), here, store)
    assert load(data, store, tmp_path) == Npz(path=here / "data.npz")
    assert list(store.root.glob("objects/*/*")) == []
    (absent,) = absent_of(data, store)
    assert isinstance(absent, Outside)
    supply(absent, store)
    moved(here)
    received = load(data, store, tmp_path)
    assert received.path.parent.name == "files"
    assert next(iter(received.samples())).inputs[0] == 0


def absent_of(data: bytes, store: Store) -> tuple[object, ...]:
    """What a machine without the files of this one lacks."""
    here = store.root.parent / "here"
    elsewhere = moved(here)
    try:
        with pytest.raises(AbsentError) as caught:
            load(data, store, store.root)
    finally:
        elsewhere.rename(here)
    return caught.value.absent


def test_a_file_that_has_changed_is_not_sent(here: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (absent,) = absent_of(sent(Npz(path=here / "data.npz"), here, store), store)
    (here / "data.npz").write_bytes(b"other")
    with pytest.raises(StageError, match="has changed since this command began"):
        supply(absent, store)  # type: ignore[arg-type]


def test_code_travels_with_all_that_it_imports(here: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    code = Code.model_validate("factory_of_net:build", context={"roots": (here,)})
    option = Code.model_validate("factory_of_net:Option", context={"roots": (here,)}).load()
    model = Model(format="torch", path=here / "net.onnx", code=here)
    data = sent((code, option, model), here, store, code)
    for absent in absent_of(data, store):
        assert isinstance(absent, Outside | Source)
        supply(absent, store)
    moved(here)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from edgeopt.run.cluster.portable import load\nfrom edgeopt.run.store import Store\n"
        f"code, option, model = load({data!r}, Store(Path({str(store.root)!r})), Path())\n"
        "print(code.load()(), option.__name__, model.code == code.folder, model.path.read_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "7 Option True b'weights'\n", done.stderr


def test_other_versions_are_told_by_name() -> None:
    assert other_versions({"numpy": np.__version__, "pydantic": "0.1", "nothing": "1"}) == {
        "pydantic": ("0.1", __import__("pydantic").__version__),
        "nothing": ("1", ""),
    }


def test_a_store_has_one_name_on_all_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_place("store") == str(tmp_path / "store")
    assert store_place(Path("s3:/models/cache")) == "s3://models/cache"
