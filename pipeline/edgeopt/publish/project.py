"""The project file ``edgeopt.toml``: the location of releases and the required signature.

[artifacts]
remote = "oci://registry.example.com/models"     # NAME is looked up below it
require_signature = "keys/release.pub"            # a path relative to this file
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.config.nearest import nearest
from edgeopt.errors import UsageError

FILE = "edgeopt.toml"


class Artifacts(BaseModel):
    """The ``[artifacts]`` table of a project file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    remote: str | None = Field(None, description="URL to which release names are appended")
    require_signature: Path | None = Field(None, description="public key of the required signature")
    library: Path | None = Field(None, description="folder of local releases; default: artifacts/library")
    baselines: tuple[Path, ...] = Field((), description="baseline files whose artifacts are never deleted")


def find_project(start: Path) -> Artifacts:
    """The settings of the nearest ``edgeopt.toml`` in ``start`` or its parents; the defaults if none exists.

    Raises:
        UsageError: the file is invalid; the error names the file and the key.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        file = folder / FILE
        if file.is_file():
            return _read(file)
    return Artifacts()


def _read(file: Path) -> Artifacts:
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"cannot read {file}: {reason}") from error
    unknown = sorted(set(document) - {"artifacts"})
    if unknown:
        raise UsageError(f"{file}: unknown table {unknown[0]!r}", fix="the only table is [artifacts]")
    try:
        found = Artifacts.model_validate(document.get("artifacts", {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][-1]) if first["loc"] else ""
        hint = nearest(key, list(Artifacts.model_fields)) if first["type"] == "extra_forbidden" else ""
        place = f"artifacts.{key}" if key else "artifacts"
        raise UsageError(f"{file}: {place}: {first['msg'].lower()}{hint}") from error
    return found.model_copy(
        update={
            "require_signature": found.require_signature and file.parent / found.require_signature,
            "library": found.library and file.parent / found.library,
            "baselines": tuple(file.parent / each for each in found.baselines),
        }
    )
