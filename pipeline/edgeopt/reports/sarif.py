"""Lint findings as SARIF 2.1.0, for code scanning.

Source: OASIS Static Analysis Results Interchange Format, version 2.1.0
(https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html), sections 3.13 to 3.31.
"""

import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from edgeopt.devices.lint import Finding
from edgeopt.reports.plain import printable

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULES = {
    "flash": "The file is larger than the device's flash",
    "ram": "The model needs more memory than the device has",
    "operator": "The device's runtime does not support an operator",
    "custom": "The device's runtime does not support a custom operator",
    "flex": "A TensorFlow operator (Flex), which is not part of TFLite",
    "version": "An operator is newer than the device's runtime",
    "dtype": "The device's runtime does not support these data types for the operator",
    "hybrid": "The device does not support float activations with integer weights",
    "float": "The device supports integer models only",
    "shape": "The device supports fixed shapes only",
    "runtime": "The file needs another runtime than the device has",
    "fault": "The runtime is known to compute the operator wrongly",
    "unread": "The file cannot be read",
}
"""Descriptions of the rules; other rules are described by their name."""


def render(findings: Sequence[Finding], file: Path, device: str) -> str:
    """SARIF text: one run, one rule per kind of finding, one result per finding, all located in the file."""
    rules = sorted({finding.rule for finding in findings})
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "edgeopt",
                        "semanticVersion": importlib.metadata.version("edgeopt"),
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                # One category per file and device: an upload replaces only findings of the same pair.
                "automationDetails": {"id": f"edgeopt-lint/{quote(device)}/{quote(file.name)}/"},
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, rules, file, device) for finding in findings],
            }
        ],
    }
    return json.dumps(log, indent=2) + "\n"


def _rule(rule: str) -> dict[str, object]:
    description = RULES.get(rule, rule)
    return {"id": rule, "name": rule, "shortDescription": {"text": f"{description}."}}


def _result(finding: Finding, rules: Sequence[str], file: Path, device: str) -> dict[str, object]:
    layer = printable(finding.layer)
    where = f"{layer}: " if layer else ""
    location: dict[str, object] = {
        # A model has no lines, but code scanning requires one.
        "physicalLocation": {"artifactLocation": {"uri": address(file)}, "region": {"startLine": 1}}
    }
    if layer:
        location["logicalLocations"] = [{"fullyQualifiedName": layer, "kind": "element"}]
    text = f"{file.name} on {device}: {where}{finding.message}. Fix: {finding.fix}."
    return {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": finding.severity,
        "message": {"text": printable(text)},
        "locations": [location],
    }


def address(file: Path) -> str:
    """URI of the file, relative if it is in the working directory, which in CI is the repository."""
    relative = Path(os.path.relpath(file))
    if relative.parts[0] == "..":
        return file.resolve().as_uri()
    return quote(relative.as_posix())
