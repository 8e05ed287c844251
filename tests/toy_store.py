"""What several processes put into one store at the same time; found by name in each of them."""

from pathlib import Path

from edgeopt.run.store import Store


def fill_store(root: Path) -> None:
    """Put fifty entries, the same ones whoever does it."""
    store = Store(root)
    for index in range(50):
        with store.scratch() as folder:
            (folder / "model.bin").write_text(f"same {index}")
            store.put(f"{index:02x}" + "0" * 62, folder, {"kind": "test"})
