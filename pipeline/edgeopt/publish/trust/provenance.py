"""Provenance of a bundle: an in-toto statement with a SLSA provenance predicate.

It identifies neither the machine nor its user: absolute paths lose their folders, and the publisher is
recorded only if given.

Sources: https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance
"""

import datetime
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from edgeopt.errors import VerificationError
from edgeopt.publish.trust.portable import portable
from edgeopt.results import Report, Result

FILE: Final = "provenance.intoto.json"
BUILD_TYPE: Final = "urn:edgeopt:build:recipe:v1"
"""The build type, which defines the meaning of `Definition`: the execution of a recipe."""
LARGEST: Final = 16 << 20
CONTENT: Final = "edgeoptContent"
"""Algorithm name of digests that are not the sha256 of one file: those of datasets and folders."""
DATA: Final = ("calibration", "train", "validation", "evaluation")


class _Part(BaseModel):
    # Other tools may add fields that the specifications allow: ignore unknown ones.
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Resource(_Part):
    """A file, a dataset or a package."""

    name: str
    uri: str | None = None
    digest: dict[str, str] | None = None
    annotations: dict[str, str] | None = None

    def only_digest(self) -> str:
        """The digest, of any algorithm; empty if it has none."""
        return next(iter((self.digest or {}).values()), "")


class RecipeText(_Part):
    """The executed recipe. ``settings`` is the digest of its values, as in reports."""

    name: str
    text: str
    sha256: str
    settings: str = ""


class External(_Part):
    """The parameters of the build."""

    name: str
    version: str
    variant: str
    format: str
    device: str
    recipe: RecipeText


class Internal(_Part):
    """The stages that ran."""

    chain: tuple[str, ...]


class Definition(_Part):
    """All inputs of the build."""

    build_type: Literal["urn:edgeopt:build:recipe:v1"] = BUILD_TYPE
    external_parameters: External
    internal_parameters: Internal
    resolved_dependencies: tuple[Resource, ...]


class Builder(_Part):
    """The edgeopt version that ran the build."""

    id: str
    version: dict[str, str]


class Metadata(_Part):
    """Start and end of the run, in UTC."""

    started_on: str
    finished_on: str


class Details(_Part):
    """Details of the build. ``byproducts``: the file before a device's own compiler, if it has one."""

    builder: Builder
    metadata: Metadata
    byproducts: tuple[Resource, ...] = ()


class Gate(_Part):
    """The verdict of one gate of the recipe on this artifact."""

    gate: str
    status: str
    measured: float | None = None
    limit: float


class Predicate(_Part):
    """The SLSA provenance, extended with ``edgeopt_`` fields."""

    build_definition: Definition
    run_details: Details
    gates: tuple[Gate, ...] = Field((), alias="edgeopt_gates")
    samples: int = Field(0, alias="edgeopt_evaluationSamples")
    published_by: str | None = Field(None, alias="edgeopt_publishedBy")


class Statement(_Part):
    """The statement. The first ``subject`` is the model file; the others are the rest of its bundle."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field("https://in-toto.io/Statement/v1", alias="_type")
    subject: tuple[Resource, ...] = Field(min_length=1)
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = "https://slsa.dev/provenance/v1"
    predicate: Predicate

    @property
    def parameters(self) -> External:
        """The parameters of the build."""
        return self.predicate.build_definition.external_parameters

    @property
    def packages(self) -> dict[str, str]:
        """Versions of the packages that built the artifact."""
        dependencies = self.predicate.build_definition.resolved_dependencies
        return {
            each.name: each.uri.rpartition("@")[2]
            for each in dependencies
            if each.uri is not None and each.uri.startswith("pkg:pypi/")
        }

    @property
    def ingredients(self) -> dict[str, str]:
        """Digests of ``source`` (the source model) and of the datasets, by their use in the recipe."""
        dependencies = self.predicate.build_definition.resolved_dependencies
        return {each.name: each.only_digest() for each in dependencies if each.digest}

    @property
    def built(self) -> str:
        """sha256 of the file that the stages built: the model, or the input of a device's compiler."""
        return (*self.predicate.run_details.byproducts, *self.subject)[0].only_digest()


def statement(
    report: Report,
    result: Result,
    *,
    name: str,
    version: str,
    models: Sequence[str],
    files: Mapping[str, str],
    who: str | None = None,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The provenance of one artifact, as JSON values.

    Args:
        report: of the run that built the artifact.
        result: the artifact's row in it.
        name: its published name.
        version: its published version.
        models: names of the model's files, the main one first.
        files: sha256 of every file of the bundle, by name.
        who: the publisher; omitted if None.
        record: the run's record of the built file (``models/<variant>.<suffix>.json``).

    Raises:
        ValueError: the artifact is not among ``files``.
    """
    artifact, record = result.artifact, record or {}
    if not models or artifact is None or not set(models) <= set(files):
        raise ValueError(f"the artifact of {result.variant}.{result.format} is not among the files")
    ordered = [models[0], *sorted(set(files) - {models[0]})]
    built = str(record.get("digest") or artifact.digest)
    document = Statement(
        subject=tuple(Resource(name=file, digest={"sha256": files[file]}) for file in ordered),
        predicate=Predicate(
            build_definition=Definition(
                external_parameters=External(
                    name=name,
                    version=version,
                    variant=result.variant,
                    format=result.format,
                    device=result.device,
                    recipe=_recipe(report),
                ),
                internal_parameters=Internal(chain=result.chain),
                resolved_dependencies=tuple(_ingredients(report, record.get("versions") or {})),
            ),
            run_details=Details(
                builder=Builder(
                    id=f"pkg:generic/edgeopt@{report.run.edgeopt}", version={"edgeopt": report.run.edgeopt}
                ),
                metadata=_times(report),
                byproducts=(Resource(name="built", digest={"sha256": built}),)
                if built != files[models[0]]
                else (),
            ),
            gates=tuple(
                Gate(gate=v.gate, status=v.status, measured=v.measured, limit=v.limit)
                for v in report.gates
                if (v.variant, v.format, v.device) == (result.variant, result.format, result.device)
            ),
            samples=report.run.samples,
            published_by=who,
        ),
    )
    return document.model_dump(mode="json", by_alias=True, exclude_none=True)


def read_statement(path: Path) -> Statement:
    """Read a provenance record.

    Raises:
        VerificationError: the record is missing, or was not written by edgeopt.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise VerificationError(f"{path} is too large for a provenance record", fix="pull it again")
        return Statement.model_validate_json(content)
    except OSError as error:
        raise VerificationError(
            f"cannot read the provenance {path}: {error.strerror}", fix="give the folder of a complete bundle"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationError(
            f"{path} is not a provenance record of edgeopt: {where + ': ' if where else ''}{first['msg']}",
            fix="pull it again",
        ) from error


def _recipe(report: Report) -> RecipeText:
    text = portable(report.run.document)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return RecipeText(name=report.recipe, text=text, sha256=digest, settings=report.run.recipe_digest)


def _ingredients(report: Report, versions: Mapping[str, str]) -> Iterator[Resource]:
    """The source model, the datasets and the packages of a build."""
    source = report.source
    if source is not None and source.digest:
        kind = CONTENT if source.is_folder else "sha256"
        annotations = {"format": source.format, "file": PurePosixPath(source.path).name}
        yield Resource(name="source", digest={kind: source.digest}, annotations=annotations)
    for part in DATA:
        if digest := str(getattr(report.run, f"{part}_digest")):
            yield Resource(name=part, digest={CONTENT: digest})
    for package, version in sorted(versions.items()):
        yield Resource(name=package, uri=package_url(package, version))


def package_url(package: str, version: str) -> str:
    """The package URL of a Python package.

    Source: https://github.com/package-url/purl-spec
    """
    return f"pkg:pypi/{package.lower().replace('_', '-')}@{version}"


def _times(report: Report) -> Metadata:
    started = datetime.datetime.fromisoformat(report.run.started).astimezone(datetime.UTC)
    ended = started + datetime.timedelta(seconds=round(report.run.seconds))
    first, last = (moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in (started, ended))
    return Metadata(started_on=first, finished_on=last)
