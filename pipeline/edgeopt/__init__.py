"""edgeopt: make trained models smaller and faster without losing accuracy, and prove it.

    report = edgeopt.optimize("recipe.yaml")
    plan = edgeopt.plan("recipe.yaml")
    report = edgeopt.profile("model.tflite", device="host")

Worker processes are spawned, so a script must call ``optimize`` under ``if __name__ == "__main__":``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.commands.optimize import optimize
    from edgeopt.commands.plan import plan
    from edgeopt.commands.profile import profile
    from edgeopt.errors import EdgeoptError, RecipeError, UsageError
    from edgeopt.results import Report

__all__ = ["EdgeoptError", "RecipeError", "Report", "UsageError", "optimize", "plan", "profile"]

_MODULES = {
    "EdgeoptError": "errors",
    "RecipeError": "errors",
    "UsageError": "errors",
    "Report": "results",
    "optimize": "commands.optimize",
    "plan": "commands.plan",
    "profile": "commands.profile",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, to keep `edgeopt --help` fast.
    if name in _MODULES:
        return getattr(importlib.import_module(f"edgeopt.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
