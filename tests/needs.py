"""Skips test modules whose packages are not installed, without importing those packages."""

from importlib.util import find_spec

import pytest


def needs(*packages: str) -> None:
    """Skip the calling test module if a package is not installed.

    ``pytest.importorskip`` imports: some of these packages take ten seconds, and each test process collects
    every module.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)
