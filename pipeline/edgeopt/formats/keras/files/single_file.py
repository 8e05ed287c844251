"""Keras models in a single file, ``.keras`` or ``.h5``, described from their configuration."""

import zipfile
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.formats.keras.files import config as keras_config
from edgeopt.formats.keras.files import hdf5, vectorizers
from edgeopt.formats.specs import UNDECLARED
from edgeopt.formats.wire import bounded
from edgeopt.model import Model
from edgeopt.plugin.contents import Source

MEMBERS = frozenset({"config.json", "metadata.json", "model.weights.h5"})
SAVE_WHOLE = "save the whole model: model.save('model.keras')"

_CONFIGURATION = """
import json, sys
from pathlib import Path
import h5py
from edgeopt.formats.untrusted import hdf5

def text(value):
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)

path = Path(sys.argv[1])
with h5py.File(path, "r") as file:
    config, version = text(file.attrs.get("model_config")), text(file.attrs.get("keras_version"))
config = config if config is None else config[: int(sys.argv[2])]
json.dump([config, version, hdf5.findings(path)], sys.stdout)
"""

_WEIGHTS = """
import json, sys
from pathlib import Path
from edgeopt.formats.untrusted import keras_files

json.dump(keras_files.weights(Path(sys.argv[1])), sys.stdout)
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
    source = _source(path, config, version, trust)
    if hdf5.available():  # otherwise no loader can read the weights either
        _stays_inside(path, hdf5.ask(path, _WEIGHTS))
    return source


def read_hdf5(path: Path, trust: bool) -> Source:
    """The model in an ``.h5`` file.

    Raises:
        UsageError: the file contains weights only, reads another file, or would run code and is not trusted.
        MissingPackageError: h5py is not installed.
    """
    config, version, outside = hdf5.ask(path, _CONFIGURATION, str(bounded.JSON_LIMIT + 1))
    if config is None:
        raise UsageError(f"{path} contains weights only: it has no 'model_config'", fix=SAVE_WHOLE)
    _stays_inside(path, outside)
    return _source(path, bounded.json_value(config), version or "2", trust)


def _stays_inside(path: Path, outside: list[str]) -> None:
    """Refuse weights in other files, also with trust: the files would not reach the device."""
    if outside:
        raise UsageError(
            f"{path} is rejected: {outside[0]}", fix="load the model where it was made and save it again"
        )


def _source(path: Path, config: Any, version: str, trust: bool) -> Source:
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError("its configuration does not describe a Keras model")
    notes = list(keras_config.allowed_by_trust(path, config, trust))
    inputs = keras_config.inputs(config)
    vectorizers.refuse(path, config, inputs)
    if not inputs:
        notes.append(UNDECLARED)
    notes += keras_config.changed_for_inference(config)
    keras_2 = not version.startswith("3")
    if keras_2:
        notes.append(f"saved by Keras {version}: loaded with tf_keras")
    return Source(
        model=Model(format="tf_keras" if keras_2 else "keras", path=path, inputs=inputs),
        framework="keras",
        notes=tuple(notes),
        layers=keras_config.layers(config),
        output_count=keras_config.output_count(config),
        needs_code=keras_config.custom_class(config),
    )
