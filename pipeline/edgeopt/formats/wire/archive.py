"""Member sizes of zip archives, from the directory alone."""

import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from edgeopt.formats.wire import bounded


def member_sizes(path: Path, part_of: Callable[[str], str]) -> dict[str, int]:
    """Compressed sizes of an archive's members in bytes, summed by ``part_of(member name)``.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
        ValueError: the archive has too many members.
    """
    sums: dict[str, int] = defaultdict(int)
    with zipfile.ZipFile(path) as archive:
        bounded.member_names(archive)
        for entry in archive.infolist():
            if not entry.is_dir():
                sums[part_of(entry.filename)] += entry.compress_size
    sums["archive directory and padding"] = path.stat().st_size - sum(sums.values())
    return {part: size for part, size in sums.items() if size}
