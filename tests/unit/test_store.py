import errno
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from edgeopt.errors import StoreError, UsageError
from edgeopt.run.store import Store, full_disk_explained, open_store, store_folder
from toy_store import fill_store

KEY = "ab" + "0" * 62


def put(store: Store, key: str = KEY, text: str = "content") -> None:
    with store.scratch() as folder:
        (folder / "model.bin").write_text(text)
        store.put(key, folder, {"kind": "test"})


def test_what_was_put_is_found_again_by_another_store(tmp_path: Path) -> None:
    put(Store(tmp_path))
    entry = Store(tmp_path).get(KEY)
    assert entry is not None
    assert (entry.folder / "model.bin").read_text() == "content"
    assert entry.meta == {"kind": "test"}
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "extra", "record", "gone"])
def test_a_damaged_entry_is_removed_and_reported(tmp_path: Path, damage: str) -> None:
    put(Store(tmp_path))
    folder = tmp_path / "objects" / "ab" / KEY
    file = folder / "files" / "model.bin"
    if damage == "flip":
        file.write_text("Content")
    elif damage == "cut":
        file.write_text("cont")
    elif damage == "extra":
        (folder / "files" / "more").touch()
    elif damage == "record":
        (folder / "entry.json").write_text((folder / "entry.json").read_text().replace("test", "best"))
    else:
        (folder / "entry.json").unlink()
    store = Store(tmp_path)
    assert store.get(KEY) is None
    assert store.damaged == [KEY]
    put(store)
    assert store.get(KEY) is not None


def test_a_full_disk_is_explained_and_finished_work_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    put(store)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edgeopt.run.store.json.dump", full)
        with pytest.raises(StoreError, match="no space left for the store") as caught:
            put(store, "cd" + "0" * 62)
    assert caught.value.exit_code == 3
    assert "run again to resume" in str(caught.value)
    again = Store(tmp_path)
    assert again.get(KEY) is not None
    assert again.get("cd" + "0" * 62) is None


@pytest.mark.parametrize("raised", ["itself", "quoted", "caused"])
def test_a_disk_that_a_stage_fills_is_named(
    raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the library raises that has noticed it."""

    def fill() -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if raised == "itself":
            raise full
        if raised == "quoted":
            raise RuntimeError(f"PytorchStreamWriter failed: {full.strerror}")
        raise ValueError("the file was not written") from full

    with (
        pytest.raises(StoreError, match=f"no space left for the store in {tmp_path}"),
        full_disk_explained(tmp_path),
    ):
        fill()
    free = {tmp_path: 2 << 20, Path(tempfile.gettempdir()): 1 << 20}
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(4 << 20, 0, free[Path(place)]))
    with (
        pytest.raises(StoreError, match=r"for temporary files in .*\n.*TMPDIR"),
        full_disk_explained(tmp_path),
    ):
        fill()
    with pytest.raises(ValueError, match="of another kind"), full_disk_explained(tmp_path):
        raise ValueError("of another kind")


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--store"):
        Store(tmp_path / "file")


def test_abandoned_scratch_is_swept_and_that_of_a_living_run_kept(tmp_path: Path) -> None:
    with Store(tmp_path).scratch() as living:
        # The same process id means nothing: in containers, every run may have it.
        abandoned = living.with_name(f"{os.getpid()}-abandoned")
        abandoned.mkdir()
        (abandoned / "model.bin").touch()
        Store(tmp_path)
        assert list((tmp_path / "scratch").iterdir()) == [living]


def test_processes_may_store_the_same_keys_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill_store, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = Store(tmp_path)
    for index in range(50):
        entry = store.get(f"{index:02x}" + "0" * 62)
        assert entry is not None
        assert (entry.folder / "model.bin").read_text() == f"same {index}"
    assert store.damaged == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_default_store_is_that_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = tmp_path / "project" / "src" / "nets"
    nets.mkdir(parents=True)
    monkeypatch.chdir(nets)
    assert store_folder(None) == Path("artifacts/store")
    (tmp_path / "project" / "pyproject.toml").touch()
    store = open_store(None)
    assert store.root == tmp_path / "project" / "artifacts" / "store"
    assert (store.root / ".gitignore").read_text() == "*\n"
    assert open_store("mine").root == Path("mine")
    monkeypatch.chdir(tmp_path / "project")
    assert store_folder(None) == Path("artifacts/store")
    monkeypatch.chdir(nets)
    Path("artifacts/store").mkdir(parents=True)  # one that is there is used
    assert store_folder(None) == Path("artifacts/store")
