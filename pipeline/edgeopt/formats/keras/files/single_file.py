"""Keras models in a single file, ``.keras`` or ``.h5``, described from their configuration."""

import zipfile
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.formats.keras.files import config as keras_config
from edgeopt.formats.keras.files import hdf5
from edgeopt.formats.specs import UNDECLARED
from edgeopt.formats.wire import bounded
from edgeopt.model import Model
from edgeopt.plugin.contents import Source

MEMBERS = frozenset({"config.json", "metadata.json", "model.weights.h5"})
SAVE_WHOLE = "save the whole model: model.save('model.keras')"

_CONFIGURATION = """
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
        UsageError: a member is missing, or the model would run code and is not trusted.
    """
    with zipfile.ZipFile(path) as archive:
        missing = MEMBERS - bounded.member_names(archive)
        if missing:
            raise UsageError(
                f"{path} is not a Keras archive (.keras): {', '.join(sorted(missing))} not found",
                fix=SAVE_WHOLE,
            )
        config = bounded.json_member(archive, "config.json")
        version = str(bounded.json_member(archive, "metadata.json").get("keras_version", "3"))
    return _source(path, config, version, trust)


def read_hdf5(path: Path, trust: bool) -> Source:
    """The model in an ``.h5`` file.

    Raises:
        UsageError: the file contains weights only, links to another file, or would run code and is not
            trusted.
        MissingPackageError: h5py is not installed.
    """
    config, version, links = hdf5.ask(path, _CONFIGURATION, str(bounded.JSON_LIMIT + 1))
    if config is None:
        raise UsageError(f"{path} contains weights only: it has no 'model_config'", fix=SAVE_WHOLE)
    if links:
        # The loader would follow the link and read a file that is not part of the model.
        raise UsageError(
            f"{path} is rejected: {links[0]!r} links to another file", fix="save the model again"
        )
    return _source(path, bounded.json_value(config), version or "2", trust)


def _source(path: Path, config: Any, version: str, trust: bool) -> Source:
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError("its configuration does not describe a Keras model")
    notes = list(keras_config.allowed_by_trust(path, config, trust))
    inputs = keras_config.inputs(config)
    if not inputs:
        notes.append(UNDECLARED)
    keras_2 = not version.startswith("3")
    if keras_2:
        notes.append(f"saved by Keras {version}: loaded with tf_keras")
    return Source(
        model=Model(format="tf_keras" if keras_2 else "keras", path=path, inputs=inputs),
        framework="keras",
        notes=tuple(notes),
        layers=keras_config.layers(config),
    )
