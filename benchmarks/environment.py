"""Disk space of the environment that runs this program.

.venv/bin/python benchmarks/environment.py
"""

import sys
from importlib import metadata
from pathlib import Path


def main() -> None:
    files = [path for path in Path(sys.prefix).rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    count = len({distribution.metadata["Name"] for distribution in metadata.distributions()})
    print(f"{size / 1e9:.1f} GB in {len(files):,} files, {count} distributions")


if __name__ == "__main__":
    main()
