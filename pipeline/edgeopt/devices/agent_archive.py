"""Packs the agent into one file that any Python 3.8 with numpy can run."""

import os
import tempfile
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parent / "agent"
PACKAGE = "edgeopt_agent"
SHEBANG = b"#!/usr/bin/env python3\n"
MAIN = f"import sys\n\nfrom {PACKAGE}.cli import main\n\nsys.exit(main(sys.argv[1:]))\n"
EPOCH = (1980, 1, 1, 0, 0, 0)
MODE = 0o100644 << 16


def build_agent(target: Path) -> Path:
    """Write the agent to ``target``; the same sources give the same bytes. Complete or absent.

    Raises:
        OSError: when the folder of ``target`` cannot be written.
    """
    entries = {"__main__.py": MAIN.encode()}
    for file in SOURCE.rglob("*.py"):
        entries[f"{PACKAGE}/{file.relative_to(SOURCE).as_posix()}"] = file.read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(SHEBANG)
            # Stored, not deflated: compressed bytes depend on the zlib at hand.
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for name in sorted(entries):
                    about = zipfile.ZipInfo(name, EPOCH)
                    about.external_attr = MODE
                    about.create_system = 3
                    archive.writestr(about, entries[name])
        Path(scratch).chmod(0o644)
        os.replace(scratch, target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return target


def runtime_names() -> list[str]:
    """The runtimes that the agent knows, by the names of their files."""
    return sorted(file.stem for file in (SOURCE / "runtimes").glob("*.py") if file.stem != "__init__")
