"""Files in one subfolder per class."""

from collections.abc import Iterator, Set
from itertools import islice, zip_longest
from pathlib import Path

from edgeopt.errors import UsageError


def class_names(folder: Path, content: str) -> list[str]:
    """Sorted names of the subfolders, in the order of their labels; ``content`` names the files in messages.

    Raises:
        UsageError: the path is not a folder, or has no subfolders.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder", fix="set 'path' to the folder with one subfolder per class"
        )
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UsageError(
            f"{folder}: no subfolders", fix=f"put the {content} of each class in its own subfolder"
        )
    return names


def labelled_files(
    folder: Path, suffixes: Set[str], content: str, limit: int | None
) -> Iterator[tuple[int, Path]]:
    """Label and path of the files with one of the suffixes; the classes alternate, so a few cover all.

    Raises:
        UsageError: as ``class_names``.
    """
    columns = [
        [
            (label, file)
            for file in sorted((folder / name).iterdir())
            if file.suffix.lower() in suffixes and not file.name.startswith(".")
        ]
        for label, name in enumerate(class_names(folder, content))
    ]
    in_turn = (entry for row in zip_longest(*columns) for entry in row if entry is not None)
    return islice(in_turn, limit)
