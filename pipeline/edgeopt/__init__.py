"""edgeopt: make trained models smaller and faster without losing accuracy, and prove it.

    report = edgeopt.optimize("recipe.yaml")
    plan = edgeopt.plan("recipe.yaml")
    report = edgeopt.profile("model.tflite", device="host")

Worker processes are spawned, so a script that calls ``optimize`` does so under
``if __name__ == "__main__":``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.commands.optimize import optimize, plan
    from edgeopt.commands.profile import profile
    from edgeopt.errors import EdgeoptError, RecipeError, UsageError
    from edgeopt.results import Report

__all__ = ["EdgeoptError", "RecipeError", "Report", "UsageError", "optimize", "plan", "profile"]

_HOMES = {
    "EdgeoptError": "errors",
    "RecipeError": "errors",
    "UsageError": "errors",
    "Report": "results",
    "optimize": "commands.optimize",
    "plan": "commands.optimize",
    "profile": "commands.profile",
}


def __getattr__(name: str) -> Any:
    # Looked up on first use: `edgeopt --help` must not wait for what it does not need.
    if name in _HOMES:
        return getattr(importlib.import_module(f"edgeopt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
