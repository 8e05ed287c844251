"""From a run to a release in the library: one bundle per artifact and device, described, signed, packed."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.model import file_digest, files_of
from edgeopt.publish.annotations import CREATED, FACTS, FAILED, GATES, NAME, RECIPE, RUN, SIGNED, VERSION
from edgeopt.publish.bundle import make_bundle, publishable, record_of
from edgeopt.publish.contract import Contract
from edgeopt.publish.oci import (
    BUNDLE,
    CONFIG,
    INDEX,
    KIT,
    MANIFEST,
    MODEL,
    RELEASE,
    TITLE,
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
TOLD = ("top1", "top1_drop", "agreement", "latency_p50_ms", "latency_ratio", "arena_bytes", "npu_cycles")
"""Measurements that stand beside a bundle in lists."""


def make_release(
    run: Path,
    report: Report,
    library: Remote,
    *,
    name: str,
    version: str | None = None,
    key: Path | None = None,
    who: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Release:
    """Make bundles of a run's finished artifacts and put them into the library under ``version``.

    The same run under the same version is made once; making it again finds it. Without ``version`` it is
    the day of the run and a piece of its digest.

    Raises:
        UsageError: nothing of the run can be published, or the version is that of another run.
    """
    rows = publishable(report)
    if not rows:
        raise UsageError(
            f"{run} holds no finished artifact", fix="look at its report: what failed is not published"
        )
    if not report.run.document:
        raise UsageError(
            f"{run} was made by an edgeopt that did not keep the recipe",
            fix="make it again with edgeopt optimize",
        )
    identity = file_digest(run / "report.json")
    day = report.run.started[:10].replace("-", ".")
    version = version or f"{day}-{identity[:8]}"
    found = library.resolve(version)
    if found is not None:
        index = read_index(library.manifest(found.digest), f"{name}@{version}")
        if index.annotations.get(RUN) == identity and (SIGNED in index.annotations) == (key is not None):
            return Release(name, version, found, index)
        raise UsageError(
            f"{name} has a version {version} already, and it is of another run or signed otherwise: "
            "versions do not change",
            fix="give it another version: --version 1.2.1",
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
        annotations[FAILED] = _told(failed)
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
    """Make one bundle, put it into the library, and describe it."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        contract = make_bundle(run, report, row, folder, name=name, version=version)
        made_with = record_of(run, row)
        (folder / RECIPE_FILE).write_text(portable(report.run.document), "utf-8")
        (folder / BOM_FILE).write_text(
            bom(report, row, name=name, version=version, record=made_with), "utf-8"
        )
        digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files_of(folder)}
        record = provenance.statement(report, row, name=name, version=version, files=digests, who=who or None)
        (folder / PROVENANCE_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", "utf-8")
        if key is not None:
            sign(folder, key)
        model = folder / contract.file.name
        kit = Path(scratch) / "kit.zip"
        pack(folder, kit, exclude=(contract.file.name,))
        config = contract.encode().encode()
        layers = [_blob(model, MODEL, contract.file.name), _blob(kit, KIT, "kit.zip")]
        for blob, source in zip(layers, (model, kit), strict=True):
            library.push_blob(blob, source)
    described = describe(config, CONFIG)
    library.push_blob(described, config)
    manifest = Manifest(
        artifact_type=BUNDLE,
        config=described,
        layers=tuple(layers),
        annotations={NAME: name, VERSION: version},
    )
    stored = library.push_manifest(manifest.encode(), MANIFEST)
    facts = _facts(row, contract)
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


def _facts(row: Result, contract: Contract) -> Facts:
    return Facts(
        variant=contract.variant,
        format=contract.format,
        device=contract.device,
        size_bytes=contract.file.size_bytes,
        compiled=contract.compiled,
        operators=contract.operators if contract.format == "tflite" else None,
        arena_bytes=contract.arena.measured_bytes if contract.arena else None,
        runtime=contract.runtime,
        gates="none" if not contract.gates else "pass" if contract.gates_hold else "fail",
        measurements={name: row.measurements[name].value for name in TOLD if name in row.measurements},
    )


def _told(failed: Sequence[Verdict]) -> str:
    first = "; ".join(
        f"{verdict.gate} on {verdict.variant}.{verdict.format} on {verdict.device}" for verdict in failed[:3]
    )
    return f"{len(failed)} gates did not hold: {first}" + ("; …" if len(failed) > 3 else "")
