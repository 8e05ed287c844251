"""Bill of materials of an artifact: CycloneDX 1.6, as JSON.

The model is the subject; its datasets and the packages that built it are components. The library does not
support model cards yet: the card is inserted into its JSON afterwards.

Source: https://cyclonedx.org/docs/1.6/json/, https://cyclonedx.org/capabilities/mlbom/
"""

import datetime
import importlib.metadata
import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from edgeopt.errors import MissingPackageError, install
from edgeopt.publish.trust.provenance import DATA, package_url
from edgeopt.results import Measurement, Report, Result

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

FILE: Final = "bom.cdx.json"
PREFIX: Final = "edgeopt:"
"""Prefix of properties without a CycloneDX field."""
_USES: Final = {
    "calibration": "Determines value ranges for quantization, and decisions of searches.",
    "train": "Used for fine-tuning.",
    "validation": "Decides searches and early stopping.",
    "evaluation": "Measures quality; never used to build the model.",
}


def bom(
    report: Report,
    result: Result,
    *,
    name: str,
    version: str,
    record: Mapping[str, Any] | None = None,
) -> str:
    """The bill of materials of one artifact. The same run gives the same bytes.

    Args:
        report: of the run that built the artifact.
        result: the artifact's row in it.
        name: its published name.
        version: its published version.
        record: the run's record of the built file (``models/<variant>.<suffix>.json``): versions of packages,
            inputs and outputs.

    Raises:
        MissingPackageError: cyclonedx-python-lib is not installed.
        ValueError: the result has no artifact.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise MissingPackageError(
            "a bill of materials requires cyclonedx-python-lib", fix=install("publish")
        ) from error
    if result.artifact is None:
        raise ValueError("a result without an artifact has no bill of materials")
    record = record or {}
    model = _model(report, result, name, version)
    source, data, packages = _source(report), _data(report), _packages(record.get("versions") or {})
    used = [*([source] if source else []), *data]
    document_model = Bom(
        serial_number=uuid.uuid5(
            uuid.NAMESPACE_URL, f"{name}@{version}/{result.device}/{result.artifact.digest}"
        ),
        components=[*used, *packages],
        metadata=BomMetaData(component=model, timestamp=datetime.datetime.fromisoformat(report.run.started)),
    )
    document_model.register_dependency(model, [*used, *packages])
    document: dict[str, Any] = json.loads(JsonV1Dot6(document_model).output_as_string())
    document["metadata"]["component"]["modelCard"] = _card(result, record, data)
    document["metadata"]["tools"] = {
        "components": [{"type": "application", "name": "edgeopt", "version": report.run.edgeopt}]
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _model(report: Report, result: Result, name: str, version: str) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    assert result.artifact is not None  # checked by bom()
    properties = {
        "variant": result.variant,
        "format": result.format,
        "device": result.device,
        "runtime": result.runtime,
        "chain": ", ".join(result.chain),
        "recipe": f"{report.recipe} {report.run.recipe_digest}".strip(),
        "size_bytes": str(result.artifact.size_bytes),
    }
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        version=version,
        bom_ref="model",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=result.artifact.digest)],
        properties=[Property(name=PREFIX + key, value=value) for key, value in properties.items() if value],
    )


def _source(report: Report) -> "Component | None":
    """The trained source model."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    source = report.source
    if source is None or not source.digest:
        return None
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=source.path,
        bom_ref="source",
        description="The trained model before any optimization.",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=source.digest)],
        properties=[Property(name=f"{PREFIX}format", value=source.format)],
    )


def _data(report: Report) -> "list[Component]":
    """The datasets, by use. Their digests cover samples and options, not a file."""
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    digests = {part: str(getattr(report.run, f"{part}_digest")) for part in DATA}
    return [
        Component(
            type=ComponentType.DATA,
            name=part,
            bom_ref=f"data:{part}",
            description=_USES[part],
            properties=[Property(name=f"{PREFIX}content_digest", value=digest)],
        )
        for part, digest in digests.items()
        if digest
    ]


def _packages(versions: Mapping[str, str]) -> "list[Component]":
    """The packages that built the model. They are not part of the file: scope excluded."""
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    return [
        Component(
            type=ComponentType.LIBRARY,
            name=package,
            version=version,
            bom_ref=package_url(package, version),
            purl=PackageURL.from_string(package_url(package, version)),
            scope=ComponentScope.EXCLUDED,
            licenses=_licences(package, version),
        )
        for package, version in sorted(versions.items())
    ]


def _licences(package: str, version: str) -> list[Any]:
    """The declared licence of a package as an SPDX expression, if this version is installed."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    try:
        about = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return []
    declared = next((about[field] for field in ("License-Expression", "License") if field in about), "")
    # Some packages declare the full text of their licence.
    if about["Version"] != version or not declared or len(declared) > 64:
        return []
    license_ = LicenseFactory().make_from_string(declared)
    known = isinstance(license_, LicenseExpression) or (
        isinstance(license_, DisjunctiveLicense) and license_.id
    )
    return [license_] if known else []


def _card(result: Result, record: Mapping[str, Any], data: "list[Component]") -> dict[str, Any]:
    """The model card: inputs, outputs, datasets and the measurements on the device."""
    card: dict[str, Any] = {
        "modelParameters": {
            "datasets": [{"ref": str(each.bom_ref.value)} for each in data],
            **{
                side: [{"format": _format(spec)} for spec in record[side]]
                for side in ("inputs", "outputs")
                if record.get(side)
            },
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                _metric(name, measured, result.device)
                for name, measured in sorted(result.measurements.items())
            ]
        },
    }
    return card


def _format(spec: Mapping[str, Any]) -> str:
    shape = ", ".join("?" if size is None else str(size) for size in spec["shape"])
    layout = f" {spec['layout']}" if spec.get("layout") else ""
    scale = f" scale {spec['scale']!r} zero point {spec['zero_point']}" if spec.get("scale") else ""
    return f"{spec['dtype']} [{shape}]{layout}{scale}"


def _metric(name: str, measured: Measurement, device: str) -> dict[str, Any]:
    unit = f" {measured.unit}" if measured.unit else ""
    metric: dict[str, Any] = {"type": name, "value": f"{measured.value!r}{unit}", "slice": f"on {device}"}
    if measured.ci95 is not None:
        low, high = measured.ci95
        metric["confidenceInterval"] = {"lowerBound": repr(low), "upperBound": repr(high)}
    return metric
