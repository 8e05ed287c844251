"""What loading a ``.keras`` archive or an ``.h5`` file would run or read."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from . import hdf5, keras_config

CONFIGURATION = "config.json"
_MAGIC = b"\x89HDF\r\n\x1a\n"


def findings(path: Path) -> list[str]:
    """Everything in the configuration and the weights of a Keras file that is more than a model; needs h5py.

    Raises:
        ValueError, KeyError, OSError, RuntimeError, zipfile.BadZipFile: the file is damaged.
    """
    config = configuration(path)
    return [str(found) for found in keras_config.findings(config)] + weights(path)


def configuration(path: Path) -> Any:
    """The architecture stored in a ``.keras`` or ``.h5`` file, as plain values; None if there is none."""
    if zipfile.is_zipfile(str(path)):
        with zipfile.ZipFile(str(path)) as archive:
            return json.loads(archive.read(CONFIGURATION)) if CONFIGURATION in archive.namelist() else None
    import h5py

    if not h5py.is_hdf5(str(path)):
        raise ValueError("it is neither a .keras archive nor an HDF5 file")
    with h5py.File(str(path), "r") as file:
        text = file.attrs.get("model_config")
    return None if text is None else json.loads(text)


def weights(path: Path) -> list[str]:
    """The parts of the weights that are stored in other files; needs h5py.

    Raises:
        OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile: the file is damaged.
    """
    if not zipfile.is_zipfile(str(path)):
        return hdf5.findings(path)
    found = []
    with zipfile.ZipFile(str(path)) as archive, tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        names = archive.namelist()
        # Which of two members of the same name is read depends on the reader.
        found += sorted(f"{name!r} is stored twice" for name in set(names) if names.count(name) > 1)
        for number, name in enumerate(names):
            with archive.open(name) as member:
                if member.read(len(_MAGIC)) != _MAGIC:
                    continue
                member.seek(0)
                copy = Path(folder, f"{number}.h5")
                with copy.open("wb") as target:
                    shutil.copyfileobj(member, target)
            found += [f"{name}: {each}" for each in hdf5.findings(copy)]
            copy.unlink()
    return found
