"""The runs in a folder, for comparison over time; damaged runs are reported, never fatal."""

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator

from edgeopt.results import SCHEMA, Kind, Role, with_kinds

REPORT = "report.json"
MAX_DEPTH = 3
"""Maximum depth of a run's folder: CI stores runs in the folder of a commit or a job."""


class Value(BaseModel):
    value: float
    kind: Kind = "number"
    role: Role = "cost"


Values: TypeAlias = Annotated[dict[str, Value], BeforeValidator(with_kinds)]


class Row(BaseModel):
    """One artifact on one device."""

    variant: str
    format: str
    device: str
    status: str
    measurements: Values = Field({})


class Gate(BaseModel):
    status: str
    blocks: bool = False


class Making(BaseModel):
    started: datetime.datetime
    seconds: float
    command: str = ""
    edgeopt: str = ""
    evaluation_digest: str = ""
    samples: int = 0

    @field_validator("started")
    @classmethod
    def _in_a_zone(cls, value: datetime.datetime) -> datetime.datetime:
        return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)


class Source(BaseModel):
    status: str = "ok"
    measurements: Values = Field({})


class Finding(BaseModel):
    cpu: str | None = None


class Past(BaseModel):
    """The fields needed from a ``report.json``: five times faster to parse than all of it."""

    schema_version: int = Field(alias="schema")
    recipe: str
    run: Making
    environment: dict[str, Finding] = {}
    source: Source | None = None
    results: tuple[Row, ...] = ()
    gates: tuple[Gate, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether any result or the source model could not be built or measured."""
        return any(row.status != "ok" for row in self.results) or (
            self.source is not None and self.source.status != "ok"
        )


class Found(NamedTuple):
    """A run and its folder."""

    folder: Path
    past: Past


class Damaged(NamedTuple):
    """A folder without a readable run, and the reason."""

    folder: Path
    reason: str


def read_runs(folder: Path) -> tuple[list[Found], list[Damaged]]:
    """Every run below ``folder``, oldest first, and the folders without a readable run."""
    found: list[Found] = []
    damaged: list[Damaged] = []
    for path in _reports(folder):
        if not path.is_file():
            damaged.append(Damaged(path.parent, f"no {REPORT}: the run is not finished, or was interrupted"))
            continue
        try:
            past = Past.model_validate_json(path.read_bytes())
        except OSError as error:
            damaged.append(Damaged(path.parent, f"{REPORT} cannot be read: {error.strerror}"))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            message = " ".join(part for part in (where, first["msg"].lower()) if part)
            damaged.append(Damaged(path.parent, f"{REPORT} is not a complete report: {message}"))
        else:
            if past.schema_version == SCHEMA:
                found.append(Found(path.parent, past))
            else:
                reason = f"{REPORT} has version {past.schema_version}, this edgeopt reads version {SCHEMA}"
                damaged.append(Damaged(path.parent, reason))
    return sorted(found, key=lambda run: (run.past.run.started, run.folder)), damaged


def _reports(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Paths of existing and expected reports; a folder that contains runs need not be a run itself."""
    for child in sorted(folder.iterdir()):
        if child.is_symlink() or not child.is_dir() or child.name.startswith("."):
            continue  # such as 'latest'
        if (child / REPORT).is_file():
            yield child / REPORT
            continue
        inner = list(_reports(child, depth + 1)) if depth + 1 < MAX_DEPTH else []
        if inner:
            yield from inner
        elif depth == 0:
            yield child / REPORT


def address_of(run: Path, page: Path) -> str:
    """Link from a page to a run's own page; empty if the run has none."""
    target = run / "report.html"
    if not target.is_file():
        return ""
    # Without the dot, a folder name with a colon would be parsed as a URI scheme.
    return "./" + quote(Path(os.path.relpath(target, page.parent)).as_posix())


def primary(measured: Sequence[Mapping[str, Value]]) -> str:
    """The first metric with the role ``quality``."""
    every = [(name, value) for values in measured for name, value in values.items()]
    return next((name for name, value in every if value.role == "quality"), "")
