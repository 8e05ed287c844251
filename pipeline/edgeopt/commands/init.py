"""A starter recipe for a model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeopt.commands.start import Given, Place, start
from edgeopt.run.store import Store


def starter(
    given: Given, recipe: Path, *, data_root: Path | None = None, device_folders: Sequence[Path] = ()
) -> str:
    """The text of a recipe to be written to ``recipe``; what is unknown in it is marked ``CHANGE``.

    Raises:
        UsageError: the model is missing, damaged, already converted, or would run code.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        place = Place(recipe, Store(Path(folder) / "store"), data_root, device_folders)
        return start(given, place, complete=False).text
