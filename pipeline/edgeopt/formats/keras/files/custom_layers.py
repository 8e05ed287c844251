"""The layers and functions of a Keras model that its author wrote, in a Python file that the recipe names."""

import importlib
import sys
from pathlib import Path
from typing import Any

from edgeopt.config.text import reason_of
from edgeopt.errors import StageError


def custom_objects(code: Path | None) -> dict[str, Any]:
    """The classes and functions of a module, by name; Keras finds those that it registers by itself.

    Raises:
        StageError: the module cannot be imported.
    """
    if code is None:
        return {}
    if str(code.parent) not in sys.path:
        sys.path.insert(0, str(code.parent))
    try:
        module = importlib.import_module(code.stem)
    except (Exception, SystemExit) as error:  # the module is user code
        raise StageError(
            f"{code.name} fails when it is imported: {reason_of(error)}",
            fix="keep only the layers in it, and what a script does below: if __name__ == '__main__':",
        ) from error
    return {
        name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")
    }
