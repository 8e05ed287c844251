"""The commands of ``artifacts``: publish, pull, verify and look after releases."""

from edgeopt.cli.artifacts import listing as listing  # registers its commands with those of bundles
from edgeopt.cli.artifacts import releases as releases
from edgeopt.cli.artifacts.bundles import app

__all__ = ["app"]
