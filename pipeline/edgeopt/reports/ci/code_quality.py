"""Annotations as GitLab's code quality report, which a merge request shows at the lines of the recipe."""

import hashlib
import json
from collections.abc import Sequence

from edgeopt.reports.ci.annotations import Annotation
from edgeopt.reports.plain import printable

SEVERITIES = {"error": "major", "warning": "minor"}


def render(annotations: Sequence[Annotation], file: str) -> str:
    """JSON text. The fingerprints, without lines or figures, stay the same from one run to the next."""
    return json.dumps([_issue(annotation, file) for annotation in annotations], indent=1) + "\n"


def _issue(annotation: Annotation, file: str) -> dict[str, object]:
    identity = f"{file}\0{annotation.level}\0{annotation.title}"
    return {
        "description": printable(f"{annotation.title}: {annotation.message}"),
        "check_name": "edgeopt",
        "fingerprint": hashlib.sha256(identity.encode("utf-8", "backslashreplace")).hexdigest()[:32],
        "severity": SEVERITIES[annotation.level],
        "location": {"path": file, "lines": {"begin": max(annotation.line, 1)}},
    }
