"""Packs the agent into a single file that runs on Python 3.8 or newer with numpy."""

import importlib.util
import zipfile
from pathlib import Path

from edgeopt.config import registry
from edgeopt.config.files import replacing
from edgeopt.errors import UsageError
from edgeopt.formats import untrusted

SOURCE = Path(__file__).parent / "agent"
PACKAGE = "edgeopt_agent"
SCANNERS = Path(untrusted.__file__).parent
SCANNERS_PACKAGE = "edgeopt_untrusted"
"""The device rejects the same files as this machine: it scans them with the same modules."""
SHEBANG = b"#!/usr/bin/env python3\n"
MAIN = f"import sys\n\nfrom {PACKAGE}.cli import main\n\nsys.exit(main(sys.argv[1:]))\n"
EPOCH = (1980, 1, 1, 0, 0, 0)
MODE = 0o100644 << 16


def build_agent(target: Path) -> Path:
    """Write the agent to ``target``, atomically; the same sources result in the same bytes.

    Raises:
        OSError: the folder of ``target`` is not writable.
    """
    entries = {"__main__.py": MAIN.encode()}
    for package, folder in ((PACKAGE, SOURCE), (SCANNERS_PACKAGE, SCANNERS)):
        for file in folder.rglob("*.py"):
            entries[f"{package}/{file.relative_to(folder).as_posix()}"] = file.read_bytes()
    for name, content in _installed_runtimes().items():
        entries[f"{PACKAGE}/runtimes/{name}.py"] = content
    with replacing(target) as scratch, scratch.open("wb") as stream:
        stream.write(SHEBANG)
        # Stored, not deflated: compressed bytes depend on the zlib version.
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(entries):
                info = zipfile.ZipInfo(name, EPOCH)
                info.external_attr = MODE
                info.create_system = 3
                archive.writestr(info, entries[name])
    return target


def runtime_names() -> list[str]:
    """Names of the agent's runtimes: its own modules, and entry points of installed distributions."""
    return list(registry.names("runtimes"))


def _installed_runtimes() -> dict[str, bytes]:
    """Source of each single-file module that a distribution registers under ``edgeopt.runtimes``.

    Raises:
        UsageError: a module is not found, or is not a single Python file.
    """
    sources = {}
    for (kind, name), point in registry.entry_points().items():
        if kind != "runtimes":
            continue
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
            raise UsageError(
                f"the entry point {name!r} of edgeopt.runtimes, {point.value!r}, is not a single-file module",
                fix="register a module that is a single file and defines the class Session",
            )
        sources[name] = Path(spec.origin).read_bytes()
    return sources
