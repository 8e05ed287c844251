"""Variables that code of a recipe has no business with: tokens of a CI job, and files that steer it.

While a command runs, they are not in the environment, so that no process inherits them, whatever starts it.
What needs them asks here. This keeps them from code that a pull request brings along and that looks around;
it is no sandbox: a program of the same user finds other ways.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = frozenset(
    {
        *("GITHUB_TOKEN", "GH_TOKEN", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STATE"),
        *("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"),
        *("GITLAB_TOKEN", "CI_JOB_TOKEN", "CI_REPOSITORY_URL", "CI_REGISTRY_PASSWORD", "CI_DEPLOY_PASSWORD"),
        *("CI_DEPENDENCY_PROXY_PASSWORD", "CI_JOB_JWT", "CI_JOB_JWT_V1", "CI_JOB_JWT_V2"),
        "EDGEOPT_KEY_PASSWORD",
    }
)
"""Sources: docs.github.com, "Variables reference"; docs.gitlab.com, "Predefined CI/CD variables"."""
PREFIXES = ("ACTIONS_",)
"""Addresses and tokens of the runner's caches, artifacts and identities."""

_taken: dict[str, str] = {}


@contextmanager
def withheld() -> Iterator[None]:
    """Take these variables out of the environment."""
    _taken.update((name, value) for name, value in os.environ.items() if _is_withheld(name))
    for name in _taken:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.update(_taken)
        _taken.clear()


def whole_environment() -> dict[str, str]:
    """The environment with what is withheld."""
    return {**os.environ, **_taken}


def _is_withheld(name: str) -> bool:
    return name in NAMES or name.startswith(PREFIXES)
