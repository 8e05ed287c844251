"""Functions that several processes use to write to one store concurrently; imported by name in each."""

from pathlib import Path

from edgeopt.run.store import Store


def fill_store(root: Path) -> None:
    """Put fifty entries, the same in every process."""
    store = Store(root)
    for index in range(50):
        with store.scratch() as folder:
            (folder / "model.bin").write_text(f"same {index}")
            store.put(f"{index:02x}" + "0" * 62, folder, {"kind": "test"})
