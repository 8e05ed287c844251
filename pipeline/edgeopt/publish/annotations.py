"""Annotations by which releases, bundles and moves tell what they are."""

from typing import Final

PREFIX: Final = "dev.edgeopt."
NAME: Final = f"{PREFIX}name"
VERSION: Final = f"{PREFIX}version"
RECIPE: Final = f"{PREFIX}recipe"
RUN: Final = f"{PREFIX}run"
"""Of a release: sha256 of the report.json that it was made from."""
GATES: Final = f"{PREFIX}gates"
"""Of a release: ``pass``, ``fail``, or ``none`` where the recipe has no gates."""
FAILED: Final = f"{PREFIX}gates.failed"
"""Of a release: the gates that did not hold, in words."""
SIGNED: Final = f"{PREFIX}signed"
"""Of a release: there if its bundles are signed. It tells, it does not prove."""
FACTS: Final = f"{PREFIX}facts"
"""Of a bundle's descriptor: what it is chosen by, as JSON."""
CREATED: Final = "org.opencontainers.image.created"
