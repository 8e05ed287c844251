"""Makes releases in the library from runs: one bundle per artifact and device, packed, optionally signed."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeopt.config.files import file_digest, files_of
from edgeopt.errors import UsageError
from edgeopt.plugin import digest_of
from edgeopt.publish.bundle import make_bundle, publishable, record_of
from edgeopt.publish.contract import Contract
from edgeopt.publish.oci import (
    BUNDLE,
    CONFIG,
    CREATED,
    FACTS,
    FAILED,
    GATES,
    INDEX,
    KIT,
    MANIFEST,
    MODEL,
    NAME,
    RECIPE,
    RELEASE,
    RUN,
    SIGNED,
    TITLE,
    VERSION,
    Descriptor,
    Index,
    Manifest,
    describe,
    read_index,
)
from edgeopt.publish.remote import Remote
from edgeopt.publish.selecting import Facts
from edgeopt.publish.transfer import Release
from edgeopt.publish.trust import provenance
from edgeopt.publish.trust.bom import bom
from edgeopt.publish.trust.portable import portable
from edgeopt.publish.trust.signing import sign
from edgeopt.publish.unpacking import pack
from edgeopt.results import Report, Result, Verdict

RECIPE_FILE = "recipe.yaml"
PROVENANCE_FILE = "provenance.intoto.json"
BOM_FILE = "bom.cdx.json"
LISTED = ("agreement", "latency_p50_ms", "latency_ratio", "arena_bytes", "npu_cycles")
"""Measurements that lists show for a bundle, after the metric and its drop."""


def make_release(
    run: Path,
    report: Report,
    library: Remote,
    *,
    name: str,
    version: str | None = None,
    key: Path | None = None,
    who: str = "",
    is_part: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Release:
    """Make bundles of a run's finished artifacts and store them in the library under ``version``.

    A repeated call for the same run and version returns the existing release. The default ``version`` is the
    day of the run and the start of its digest; ``is_part``: the report is a part of the run's, which has a
    digest of its own.

    Raises:
        UsageError: the run has no publishable result, or the version belongs to another run.
    """
    rows = publishable(report)
    if not rows:
        raise UsageError(
            f"{run} contains no finished artifact{' of those selected' if is_part else ''}",
            fix="see its report: only results with status ok are published",
        )
    if not report.run.document:
        raise UsageError(
            f"{run} was made by an older edgeopt that did not store the recipe",
            fix="run 'edgeopt optimize' again",
        )
    identity = file_digest(run / "report.json")
    if is_part:
        identity = digest_of([identity, [[row.variant, row.format, row.device] for row in rows]])
    day = report.run.started[:10].replace("-", ".")
    version = version or f"{day}-{identity[:8]}"
    existing = library.resolve(version)
    if existing is not None:
        index = read_index(library.manifest(existing.digest), f"{name}@{version}")
        if index.annotations.get(RUN) == identity and (SIGNED in index.annotations) == (key is not None):
            return Release(name, version, existing, index)
        raise UsageError(
            f"{name} already has a version {version}, from another run or signed differently: versions are "
            "immutable",
            fix="choose another version: --version 1.2.1",
        )
    descriptors = []
    for row in rows:
        say(f"bundle {row.variant}.{row.format} for {row.device}")
        descriptors.append(_bundle(run, report, row, library, name, version, key, who))
    failed = [verdict for verdict in report.gates if verdict.blocks]
    annotations = {
        NAME: name,
        VERSION: version,
        RUN: identity,
        CREATED: report.run.started,
        RECIPE: report.recipe,
        GATES: "fail" if failed else "pass" if report.gates else "none",
    }
    if failed:
        annotations[FAILED] = _summary(failed)
    if key is not None:
        annotations[SIGNED] = "yes"
    index = Index(artifact_type=RELEASE, manifests=tuple(descriptors), annotations=annotations)
    return Release(name, version, library.push_manifest(index.encode(), INDEX, [version]), index)


def _bundle(
    run: Path,
    report: Report,
    row: Result,
    library: Remote,
    name: str,
    version: str,
    key: Path | None,
    who: str,
) -> Descriptor:
    """Make one bundle, store it in the library and return its descriptor."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        contract = make_bundle(run, report, row, folder, name=name, version=version)
        record = record_of(run, row)
        (folder / RECIPE_FILE).write_text(portable(report.run.document), "utf-8")
        (folder / BOM_FILE).write_text(bom(report, row, name=name, version=version, record=record), "utf-8")
        digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files_of(folder)}
        models = [file.name for file in contract.model_files]
        statement = provenance.statement(
            report, row, name=name, version=version, models=models, files=digests, who=who or None
        )
        (folder / PROVENANCE_FILE).write_text(json.dumps(statement, indent=2, sort_keys=True) + "\n", "utf-8")
        if key is not None:
            sign(folder, key)
        kit = Path(scratch) / "kit.zip"
        pack(folder, kit, exclude=models)
        config = contract.encode().encode()
        layers = [_blob(folder / name, MODEL, name) for name in models] + [_blob(kit, KIT, "kit.zip")]
        for blob, source in zip(layers, (*(folder / name for name in models), kit), strict=True):
            library.push_blob(blob, source)
    descriptor = describe(config, CONFIG)
    library.push_blob(descriptor, config)
    manifest = Manifest(
        artifact_type=BUNDLE,
        config=descriptor,
        layers=tuple(layers),
        annotations={NAME: name, VERSION: version},
    )
    stored = library.push_manifest(manifest.encode(), MANIFEST)
    facts = _facts(report, row, contract)
    return stored.model_copy(
        update={
            "artifact_type": BUNDLE,
            "annotations": {FACTS: facts.model_dump_json(exclude_none=True, exclude_defaults=True)},
        }
    )


def _blob(file: Path, media_type: str, title: str) -> Descriptor:
    return Descriptor(
        media_type=media_type,
        digest=f"sha256:{file_digest(file)}",
        size=file.stat().st_size,
        annotations={TITLE: title},
    )


def _facts(report: Report, row: Result, contract: Contract) -> Facts:
    metric = report.primary_metric
    names = (metric, f"{metric}_drop", *LISTED)
    listed = {name: row.measurements[name] for name in names if name in row.measurements}
    return Facts(
        variant=contract.variant,
        format=contract.format,
        device=contract.device,
        size_bytes=contract.size_bytes,
        digest=row.artifact.digest if contract.parts and row.artifact else "",
        compiled=contract.compiled,
        operators=contract.operators or None,
        arena_bytes=contract.arena.measured_bytes if contract.arena else None,
        runtime=contract.runtime,
        gates="none" if not contract.gates else "pass" if contract.gates_pass else "fail",
        measurements={name: value.value for name, value in listed.items()},
        texts={name: value.text for name, value in listed.items()},
    )


def _summary(failed: Sequence[Verdict]) -> str:
    """The first failed gates, for messages and lists."""
    first = "; ".join(
        f"{verdict.gate} on {verdict.variant}.{verdict.format} on {verdict.device}" for verdict in failed[:3]
    )
    return f"{len(failed)} gates did not pass: {first}" + ("; …" if len(failed) > 3 else "")
