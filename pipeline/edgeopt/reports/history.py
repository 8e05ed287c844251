"""Runs that lie in a folder, as far as they are compared over time; a damaged one is told, never fatal."""

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator

from edgeopt.results import SCHEMA, Kind, Role, with_kinds

REPORT = "report.json"
DEEPEST = 3
"""Folders between the given one and a report: CI keeps runs below a commit's or a job's folder."""


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
    """What is read of a ``report.json``: a fifth of the time that all of it takes."""

    schema_version: int = Field(alias="schema")
    recipe: str
    run: Making
    environment: dict[str, Finding] = {}
    source: Source | None = None
    results: tuple[Row, ...] = ()
    gates: tuple[Gate, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether something could not be built or measured."""
        return any(row.status != "ok" for row in self.results) or (
            self.source is not None and self.source.status != "ok"
        )


class Found(NamedTuple):
    """A run, and where it lies."""

    folder: Path
    past: Past


class Damaged(NamedTuple):
    """A folder that holds no run that could be read, and why."""

    folder: Path
    reason: str


def read_runs(folder: Path) -> tuple[list[Found], list[Damaged]]:
    """Every run below ``folder``, the oldest first, and what should have been one."""
    found: list[Found] = []
    damaged: list[Damaged] = []
    for path in _reports(folder):
        if not path.is_file():
            damaged.append(Damaged(path.parent, f"no {REPORT}: not finished yet, or interrupted"))
            continue
        try:
            past = Past.model_validate_json(path.read_bytes())
        except OSError as error:
            damaged.append(Damaged(path.parent, f"{REPORT} cannot be read: {error.strerror}"))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            told = " ".join(part for part in (where, first["msg"].lower()) if part)
            damaged.append(Damaged(path.parent, f"{REPORT} is not a complete report: {told}"))
        else:
            if past.schema_version == SCHEMA:
                found.append(Found(path.parent, past))
            else:
                told = f"is of version {past.schema_version}, this edgeopt reads {SCHEMA}"
                damaged.append(Damaged(path.parent, f"{REPORT} {told}"))
    return sorted(found, key=lambda run: (run.past.run.started, run.folder)), damaged


def _reports(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Where the reports are, or should be: a folder that holds others of them need not be a run itself."""
    for child in sorted(folder.iterdir()):
        if child.is_symlink() or not child.is_dir() or child.name.startswith("."):
            continue  # such as 'latest'
        if (child / REPORT).is_file():
            yield child / REPORT
            continue
        inner = list(_reports(child, depth + 1)) if depth + 1 < DEEPEST else []
        if inner:
            yield from inner
        elif depth == 0:
            yield child / REPORT


def address_of(run: Path, page: Path) -> str:
    """A link from a page to a run's own page; empty where the run has none."""
    target = run / "report.html"
    if not target.is_file():
        return ""
    # The dot keeps a folder's name from being read as a scheme.
    return "./" + quote(Path(os.path.relpath(target, page.parent)).as_posix())


def primary(measured: Sequence[Mapping[str, Value]]) -> str:
    """The first metric that judges the answers."""
    every = [(name, value) for values in measured for name, value in values.items()]
    return next((name for name, value in every if value.role == "quality"), "")
