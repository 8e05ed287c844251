"""Keras models in one file, ``.keras`` and ``.h5``, known by their configuration."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from edgeopt.errors import MissingPackageError, UsageError
from edgeopt.formats.keras.files import config as keras_config
from edgeopt.formats.specs import UNTOLD, Source
from edgeopt.formats.wire import bounded
from edgeopt.model import Model

HDF5_SECONDS = 20
SAVE_WHOLE = "save the whole model: model.save('model.keras')"

_READ_HDF5 = """
import json, sys
import h5py

def text(value):
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)

links = []
with h5py.File(sys.argv[1], "r") as file:
    config, version = text(file.attrs.get("model_config")), text(file.attrs.get("keras_version"))
    file.visititems_links(
        lambda name, link: links.append(name) if isinstance(link, h5py.ExternalLink) else None
    )
json.dump([config if config is None else config[: int(sys.argv[2])], version, links[:1]], sys.stdout)
"""


def read_archive(path: Path, trust: bool) -> Source:
    """The model in a ``.keras`` archive.

    Raises:
        UsageError: a part is missing, or it would run code and is not trusted.
    """
    with zipfile.ZipFile(path) as archive:
        missing = {"config.json", "metadata.json", "model.weights.h5"} - bounded.member_names(archive)
        if missing:
            raise UsageError(
                f"{path} is not a Keras archive (.keras): it has no {', '.join(sorted(missing))}",
                fix=SAVE_WHOLE,
            )
        config = bounded.json_member(archive, "config.json")
        version = str(bounded.json_member(archive, "metadata.json").get("keras_version", "3"))
    return _described(path, config, version, trust)


def read_hdf5(path: Path, trust: bool) -> Source:
    """The model in an ``.h5`` file.

    Raises:
        UsageError: it holds weights only, points into another file, or would run code and is not trusted.
        MissingPackageError: h5py is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingPackageError(f"reading {path.name} needs h5py", fix="pip install 'edgeopt[keras]'")
    # In a process of its own: a damaged file can send the HDF5 library into an endless loop or a crash.
    limit = str(bounded.JSON_LIMIT + 1)
    command = [sys.executable, "-P", "-W", "ignore", "-c", _READ_HDF5, str(path), limit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HDF5_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"its structure cannot be read within {HDF5_SECONDS} seconds") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["the HDF5 library crashed on it"]
        raise ValueError(last[0])
    config, version, links = json.loads(done.stdout)
    if config is None:
        raise UsageError(
            f"{path} holds no model: it has no 'model_config', so it is weights only", fix=SAVE_WHOLE
        )
    if links:
        # The loader would read a file that the model does not own.
        raise UsageError(
            f"{path} is refused: {links[0]!r} points into another file", fix="save the model again"
        )
    return _described(path, bounded.json_value(config), version or "2", trust)


def _described(path: Path, config: Any, version: str, trust: bool) -> Source:
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError("its configuration is not that of a Keras model")
    notes = list(keras_config.allowed_by_trust(path, config, trust))
    inputs = keras_config.inputs(config)
    if not inputs:
        notes.append(UNTOLD)
    keras_2 = not version.startswith("3")
    if keras_2:
        notes.append(f"saved by Keras {version}: it is loaded through tf_keras")
    return Source(
        model=Model(format="tf_keras" if keras_2 else "keras", path=path, inputs=inputs),
        framework="keras",
        notes=tuple(notes),
        layers=keras_config.layers(config),
    )
