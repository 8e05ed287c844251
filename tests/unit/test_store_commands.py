"""``edgeopt store``: contents, unused and damaged entries."""

import json
import os
import time
from pathlib import Path

import pytest

from edgeopt.run.store import Store
from in_process import Edgeopt

KEYS = {"old": "aa" + "0" * 62, "new": "bb" + "0" * 62, "other": "cc" + "0" * 62}
DAY = 24 * 3600


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two models of a stage, one of which nobody has used for 40 days, and a measurement."""
    root = tmp_path / "store"
    made = Store(root)
    for name, key in KEYS.items():
        with made.scratch() as folder:
            (folder / "model.bin").write_bytes(b"x" * 3000)
            made.put(key, folder, {} if name == "other" else {"stage": "slim_tflite"})
    record = root / "objects" / "aa" / KEYS["old"] / "entry.json"
    moment = time.time() - 40 * DAY
    os.utime(record, (moment, moment))
    return root


def test_contents_are_listed_by_stage(edgeopt: Edgeopt, store: Path) -> None:
    said = edgeopt("store", "stats", "--store", store, "--json")
    first, second = json.loads(said.out)["contents"]
    assert (first["kind"], first["entries"]) == ("slim_tflite", 2)
    assert (second["kind"], second["entries"]) == ("measurements and checks", 1)
    assert 6000 < first["size_bytes"] < 8000
    lines = edgeopt("store", "stats", "--store", store).out.splitlines()
    assert lines[0].split()[2:] == ["2", "slim_tflite"]
    assert lines[-1].endswith(f"3  in {store}")


def test_unused_entries_are_removed_on_request_only(edgeopt: Edgeopt, store: Path) -> None:
    assert edgeopt("store", "gc", "--store", store).out.startswith("1 entries unused for 30 days, 3.")
    assert edgeopt("store", "gc", "--store", store, "--unused-for", "50", "--delete").out.startswith(
        "removed 0"
    )
    assert edgeopt("store", "gc", "--store", store, "--delete").out.startswith("removed 1 entries")
    assert [Store(store).get(key) is None for key in KEYS.values()] == [True, False, False]


def test_damaged_entries_are_named(edgeopt: Edgeopt, store: Path) -> None:
    assert edgeopt("store", "verify", "--store", store).code == 0
    (store / "objects" / "bb" / KEYS["new"] / "files" / "model.bin").write_bytes(b"y" * 3000)
    said = edgeopt("store", "verify", "--store", store)
    assert (said.code, said.out) == (1, f"✗ {KEYS['new']} is damaged\n")
    assert edgeopt("store", "verify", "--store", store, "--delete").out.endswith("is damaged, removed\n")
    assert edgeopt("store", "verify", "--store", store).out == f"✓ all entries of {store} are intact\n"


def test_without_a_store_the_option_is_named(edgeopt: Edgeopt, tmp_path: Path) -> None:
    said = edgeopt("store", "stats", "--store", tmp_path / "none")
    assert said.code == 2
    assert f"no store in {tmp_path / 'none'}" in said.err
    assert "--store DIR" in said.err
    assert not (tmp_path / "none").exists()
